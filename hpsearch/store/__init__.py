"""A study in PostgreSQL. `studies` creates and finds studies; nobody above writes SQL of their own.

`connection` has the connection and the tables, `rows` what one row holds, `claims` who trains which point.
"""
