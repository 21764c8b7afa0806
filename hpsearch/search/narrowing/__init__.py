"""Coarse to fine: where the points of the next round lie, from the rounds before.

Knows plain numbers; what a round needs of the database is in `worker.rounds`.
"""
