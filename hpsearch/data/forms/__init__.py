"""The forms in which data sets come: one module for each, and a line in `data/registry.FORMS`.

`catalog` loads the training and validation part through them, and `test_split` the test part.
"""
