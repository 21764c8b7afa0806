"""The record of test set openings. It reads and writes rows about openings, never test images.

`intents` and `stored_openings` read and write the tables of begun and finished openings in the study's database,
`machine_openings` the file of this machine; `record` has the values. `vault` and the summary of a study call them.
"""
