"""Terminal output: notices, tables and live progress.

The command line and the Python API call it with summaries, progress and messages; it writes them to stdout and stderr.
No package below it prints.
"""
