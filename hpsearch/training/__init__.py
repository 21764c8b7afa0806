"""Networks, losses, optimisers and schedules, and the loops that train one trial or many lanes at once."""
