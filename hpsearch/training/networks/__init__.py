"""The networks: those of the notes, and a user's own. `build` makes one from its settings."""
