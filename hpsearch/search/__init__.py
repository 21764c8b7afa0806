"""The search room: which point comes next, and when a trial ends, of its own accord or against others.

Knows Optuna and plain numbers; no tensors and no SQL.
"""
