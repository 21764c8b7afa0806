"""Trials that are programs: a script of the user's is started, read and ended here.

A worker comes in with a command line, an environment and a folder for one attempt.
What goes out is what the script reported, and how it ended once everything that descends from it is gone.
"""
