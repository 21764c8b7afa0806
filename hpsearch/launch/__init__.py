"""Starts the workers of a study, on this machine (`supervisor`) or on a Ray cluster (`ray_launcher`).

The command line and the Python API come in through `launcher`, with a definition and options; worker processes and, in
the end, a trained study go out. Worker code does not import this folder.
"""
