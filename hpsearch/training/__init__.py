"""Networks and their training: many trials at once, as lanes.

Takes a trial's settings and the arrays of a data set on a device; returns epoch reports, parameters and checkpoints.
The package works on tensors and settings only: it uses neither the database nor Optuna.
"""
