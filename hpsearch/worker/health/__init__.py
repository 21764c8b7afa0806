"""Whether a worker is alive and gets on: for whoever restarts it, and for whoever watches it."""
