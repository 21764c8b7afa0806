"""A study in PostgreSQL: its tables, its connection, and most of the statements that read or write them.

`connection` opens the database and declares the tables, `rows` reads and writes single rows, and `claims` decides which
worker trains which point. Commands, workers and results come in with an open `Database`; studies, claims, progress and
checkpoints go out. These modules above this folder have SQL of their own: worker/drawing, worker/rounds,
worker/lease_keeper, device/gpu_lock, results/trial_summary, results/openings/intents and results/confirmation/plan.
"""
