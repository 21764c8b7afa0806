"""Networks and their training: one trial at a time (`reference`), or many at once as lanes (`lanes`).

Knows tensors and settings; knows no database, no Optuna and no study.
"""
