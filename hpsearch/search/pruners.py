"""When a trial is given up because others are better: real Optuna pruners, built from [pruning].

The pruners count epochs: they expect each epoch's value under the step `EpochReport.epoch` (1-based, so that
the step is the resource spent). They are asked through `snapshot.StudySnapshot`, or by anyone who gives them
to a plain Optuna study. Our stopping rules as pruners, for such studies, are in patience_pruners.py and can be imported
from here as well.
"""

from __future__ import annotations

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from hpsearch.errors import InputError
from hpsearch.search.patience_pruners import (
    GeometricPatiencePruner,
    NoImprovementPruner,
    SignificancePatiencePruner,
    report_correctness,
)
from hpsearch.study.settings import PruningSettings

__all__ = [
    "GeometricPatiencePruner",
    "NoImprovementPruner",
    "SignificancePatiencePruner",
    "build_pruner",
    "is_competitive",
    "report_correctness",
]


def is_competitive(settings: PruningSettings) -> bool:
    """Whether trials are compared with each other: if not, a worker need not read the others' curves."""
    return settings.pruner != "none"


def build_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """Optuna's pruner for these settings, to be told values under the steps 1 to `max_epochs`.

    What each does in Optuna's terms (all compare validation zero-one losses; lower is better):

    - `none`: never prunes.
    - `median`, `percentile`: after every epoch, prunes a trial whose *best value so far* is worse than the
      median (or the given percentile) of the values that COMPLETE trials had *at that same epoch*. PRUNED and
      RUNNING trials do not count. Off until `startup_trials` (Optuna: n_startup_trials) are COMPLETE and
      during the first `warmup_epochs` of each trial (Optuna prunes from step n_warmup_steps on, so that is
      one epoch more).
    - `successive-halving`: asynchronous (ASHA). Rung k is at epoch `min_epochs * reduction_factor**k`
      (Optuna: min_resource). A trial passes it if its value there is among the best 1/`reduction_factor` of
      all trials that have come so far, whatever became of them; fewer than `reduction_factor`, and it must be
      the best one. The values at the rungs are kept in the trials' system attributes `completed_rung_k`.
    - `hyperband`: floor(log_factor(max_epochs / min_epochs)) + 1 brackets of successive halving, bracket b
      with its first rung at `min_epochs * reduction_factor**b`. A trial's bracket follows from the study's
      name and its number, and it competes within its bracket only. Optuna's max_resource is `max_epochs`, not
      "auto", which would let the first complete trial decide; one that stops by its own patience would make
      it too small.

    Raises:
        InputError: the first rung lies behind the last epoch, so that nothing could ever be pruned.
    """
    match settings.pruner:
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs + 1)
        case "percentile":
            return PercentilePruner(
                settings.percentile,
                n_startup_trials=settings.startup_trials,
                n_warmup_steps=settings.warmup_epochs + 1,
            )
        case "successive-halving":
            _check_first_rung(settings, max_epochs)
            return SuccessiveHalvingPruner(min_resource=settings.min_epochs, reduction_factor=settings.reduction_factor)
        case "hyperband":
            _check_first_rung(settings, max_epochs)
            return HyperbandPruner(
                min_resource=settings.min_epochs,
                max_resource=max_epochs,
                reduction_factor=settings.reduction_factor,
            )


def _check_first_rung(settings: PruningSettings, max_epochs: int) -> None:
    # Optuna itself takes this in silence; Hyperband is then left with no bracket and never prunes.
    if settings.min_epochs > max_epochs:
        raise InputError(
            f"pruning.min_epochs must be at most training.max_epochs ({max_epochs}) with the pruner "
            f"{settings.pruner}, got {settings.min_epochs}",
            hint="lower pruning.min_epochs, raise training.max_epochs, or take the pruner none",
        )
