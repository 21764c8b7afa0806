"""Many trials trained as one batched computation: each trial occupies a lane.

`cohort` is the entry point: it admits trials into lanes, trains all lanes for one epoch per call, and releases trials.
It returns epoch reports, best parameters and checkpoints.
"""
