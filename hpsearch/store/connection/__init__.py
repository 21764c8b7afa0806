"""A connection to the database that survives what a network does, the schema, and Optuna's storage on top of it."""
