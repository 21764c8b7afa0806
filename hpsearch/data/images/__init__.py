"""Image files: which files a folder has, and their decoding by all processors into one array of levels.

`forms.image_folder` and tables with columns of images come in; out go uint8 arrays and class names.
"""
