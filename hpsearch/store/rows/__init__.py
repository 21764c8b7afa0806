"""Rows of a study: points, trials, rounds, curves, correctness bits.

The functions read and write rows inside the caller's transaction, or in one of their own. They do not decide who may
write; `store/claims` does.
"""
