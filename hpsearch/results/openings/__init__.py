"""The record of test set openings. It reads and writes rows about openings, never test images.

`intents` and `record` are the tables of begun and finished openings in the study's database; `machine_openings` is the
file of this machine. `vault` writes them, and the summary of a study reads them.
"""
