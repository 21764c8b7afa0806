"""The study in PostgreSQL, and the workers that train it."""
