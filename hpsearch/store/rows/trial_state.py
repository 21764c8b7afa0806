"""The states of trials, and the attributes that hpsearch writes with a trial, under the names in Optuna's tables."""

from __future__ import annotations

from enum import Enum

# Trial attributes, for readers that know only Optuna.
POINT_ATTRIBUTE = "point"
ATTEMPT_ATTRIBUTE = "attempt"
ROUND_ATTRIBUTE = "round"  # the round that added the point (round_rows.py)
RESUMED_AT_ATTRIBUTE = "resumed_at_epoch"  # the last epoch of the checkpoint that the trial continued (checkpoints.py)
NLL_ATTRIBUTE = "best_validation_nll"  # in nats; written when the trial ends (worker/trial.py)


class StoredState(Enum):
    """The state of a trial: Optuna's TrialState, which takes a third of a second to load."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    WAITING = "WAITING"
