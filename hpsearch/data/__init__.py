"""Data sets: from a data set's name in the study file to float32 images on the device.

`catalog` finds, verifies and splits the training and validation images of a study; `resident` puts them on the device.
`test_split` is the only module that reads test images, and only the vault may import it.
"""
