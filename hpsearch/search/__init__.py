"""The search: which point comes next, and when a trial ends, by its own stopping rule or by pruning.

Workers give it settings, epoch reports and the trials of a study. It returns stop decisions, pruning decisions,
samplers and rounds of points. The package uses Optuna and plain numbers, but no tensors and no SQL.
"""
