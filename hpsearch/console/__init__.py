"""What a terminal shows: notices, tables, live progress.

The command line and the Python API print with it, and nothing below does.
"""
