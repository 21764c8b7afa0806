"""The best points of a study, trained again with fresh seeds in a companion study, and compared.

`plan` prepares the companion study, workers train it like any other, `read_outcome` reads what it found.
"""
