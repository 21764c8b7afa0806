"""The embedded PostgreSQL server: started by the first process that needs it, stopped when its last client leaves.

A folder comes in; the URL of a running database goes out. This folder does not know what the database stores. The
rooms above also use its way to wait for a lock (lock_wait.py).
"""
