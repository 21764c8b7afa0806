"""Files of a study that all its workers share: in a folder, or in a bucket.

Workers write checkpoints and trained parameters here, results read them. Knows no database.
"""
