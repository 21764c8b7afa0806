"""The vault of the test set: it is opened once per study, for the chosen point, and recorded before any image is read.

`final_test.open_vault` takes a study and returns a `VaultRecord` with the test error; it is the only code that reads
test images. The records of begun and finished openings are in `results/openings`.
"""
