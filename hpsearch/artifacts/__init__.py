"""Files of a study that all its workers share, in a folder or in a bucket.

Workers bring checkpoints and trained parameters; results read them back by their ids. Code in this folder does not open
a database.
"""
