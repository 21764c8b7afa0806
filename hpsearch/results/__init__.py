"""The results of a study: summary, confirmation, chosen point, exports, report, and the vault of the test set.

The command line, the Python API and the console call it with a database and a study's name. It returns summaries as
dataclasses and JSON, and writes export files, HTML reports and records of test set openings. `choice` chooses the point
that all of them use. Nothing here trains, except when the vault trains a point again.
"""
