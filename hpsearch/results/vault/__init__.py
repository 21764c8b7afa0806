"""The test set: opened once per study, for the chosen point, and recorded before the first image is read.

`final_test` is the only code that reads test images; `record` and `intents` are the tables, `machine_openings` is the
file of this machine.
"""
