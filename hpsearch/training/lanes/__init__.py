"""Many trials trained as one batched computation.

`cohort` is where one comes in: lanes join it, train epoch by epoch, and leave it with a checkpoint or a result.
"""
