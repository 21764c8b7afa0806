"""Which GPUs a machine has, and one of them pinned to a worker."""
