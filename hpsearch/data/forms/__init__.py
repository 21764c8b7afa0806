"""The forms in which data sets come: one module for each, with a `form.DataForm` of its own.

`data/registry.FORMS` lists them. `catalog` loads the training and validation part through them, and `held_out` the test
part.
"""
