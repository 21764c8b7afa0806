"""The connection to the study database: address, retries, schema, tables, and Optuna's storage on top of it.

A storage URL comes in; an open `Database` goes out, which survives network failures and restarts of the server. Errors
of the driver become errors of hpsearch here.
"""
