"""Starts the workers of a study: on this machine (`supervisor`), or on a Ray cluster.

The command line and the Python API call `launcher`; a worker process knows nothing of this folder.
"""
