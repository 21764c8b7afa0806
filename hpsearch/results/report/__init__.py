"""The HTML report of a study. `page` combines figures, tables and the search map into one self-contained file.

It takes a database and a study's name, or a `StudyStatus`, and returns or writes the HTML. This is the only package of
hpsearch that draws plots.
"""
