"""A study in PostgreSQL: its tables, its connection, and every statement that reads or writes them.

`connection` opens the database and declares the tables, `rows` reads and writes single rows, and `claims` decides which
worker trains which point. Commands, workers and results come in with an open `Database`; studies, claims, progress and
checkpoints go out. No module above this folder writes SQL.
"""
