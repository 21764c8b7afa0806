"""The coarse-to-fine search: the points of the next round, computed from the earlier rounds.

`ladder.Narrowing` takes the known points with their values and returns a `Round`, or `Finished`. The package uses plain
numbers only; `worker.rounds` reads from and writes to the database.
"""
