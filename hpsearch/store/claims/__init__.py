"""The ledger: which worker trains which point, by claims and leases, so that each point is counted exactly once."""
