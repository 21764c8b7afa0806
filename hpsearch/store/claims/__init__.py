"""The ledger: decides by claims and leases which worker trains which point, so that each point is counted once.

Workers come in to claim points, renew leases, record epochs and finish trials. Claims, the trials that a worker still
holds, and point counts go out.
"""
