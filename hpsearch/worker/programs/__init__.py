"""Workers whose trials are programs.

A worker's process comes in with its study, and claims points like a worker that trains lanes. What goes out is what a
program has reported, as epochs and results in the ledger, and what it has printed and saved, as artifacts.
"""
