"""Which devices a machine has, and one GPU pinned to each worker.

A worker comes in with the device that its user has named; a `PinnedDevice` goes out, with a lock in the study database
that keeps other workers off the GPU. `processors` counts usable CPU cores.
"""
