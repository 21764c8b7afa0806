"""Confirmation: trains the best points of a study again with fresh seeds, in a companion study, and compares them.

`plan` selects the points and creates or extends the companion study, which workers train like any other study.
`read_outcome` reads its results and returns a `Confirmation`: mean errors, their differences, and the picked point.
"""
