"""The embedded PostgreSQL server: started for who needs it, stopped when its last client leaves.

Gives an address; what is stored at that address is no concern of this folder.
"""
