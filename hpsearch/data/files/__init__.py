"""Files of data sets: found on this machine or downloaded, verified, unpacked, and parsed without running their code.

In come names, paths and published checksums; out go verified bytes and arrays. `forms` makes data sets of them.
"""
