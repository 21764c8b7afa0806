"""Optuna pruners, built from the settings in [pruning]: they end a trial because other trials are better.

The pruners count epochs: they expect each epoch's value at the step `EpochReport.epoch` (1-based, so that the step is
the resource spent). Workers use them through `snapshot.StudySnapshot`; they also work with a plain Optuna study. The
stopping rules as pruners, for such studies, are in patience_pruners.py and can also be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable

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
from hpsearch.study.registry import PRUNERS
from hpsearch.study.settings import PruningSettings

__all__ = [
    "GeometricPatiencePruner",
    "NoImprovementPruner",
    "SignificancePatiencePruner",
    "build_pruner",
    "first_look",
    "is_competitive",
    "report_correctness",
]


def is_competitive(settings: PruningSettings) -> bool:
    """Whether the pruner compares trials. If not, a worker need not read the curves of other trials."""
    return settings.pruner != "none"


def first_look(settings: PruningSettings) -> int:
    """The first epoch after which a pruner that compares trials may end one."""
    return max(settings.warmup_epochs + 1, settings.min_epochs)


def build_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """Optuna's pruner for these settings; it expects values at the steps 1 to `max_epochs`.

    All pruners compare the losses of the study's metric; lower is better. `study.registry.PRUNERS` names their
    functions.

    Raises:
        InputError: the first rung is after the last epoch, so that no trial could be pruned.
    """
    build: Callable[[PruningSettings, int], BasePruner] = PRUNERS[settings.pruner].implementation
    return build(settings, max_epochs)


def no_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    return NopPruner()


def median_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """As `percentile_pruner`, with the median."""
    return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs + 1)


def percentile_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """Prune, after every epoch, a trial whose best value so far is worse than this percentile of the others.

    The others' values are those that COMPLETE trials had at that same epoch; PRUNED and RUNNING trials do not count.
    Off until `startup_trials` (Optuna: n_startup_trials) are COMPLETE and during the first `warmup_epochs` of each
    trial (Optuna prunes from step n_warmup_steps on, so that is one epoch more).
    """
    return PercentilePruner(
        settings.percentile, n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs + 1
    )


def successive_halving_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """Asynchronous successive halving (ASHA).

    Rung k is at epoch `min_epochs * reduction_factor**k` (Optuna: min_resource). A trial passes it if its value there
    is among the best 1/`reduction_factor` of all trials that have reached the rung, whatever their state. If fewer
    than `reduction_factor` trials have reached it, the trial must be the best one. Values at the rungs are stored in
    the trials' system attributes `completed_rung_k`.
    """
    _check_first_rung(settings, max_epochs)
    return SuccessiveHalvingPruner(min_resource=settings.min_epochs, reduction_factor=settings.reduction_factor)


def hyperband_pruner(settings: PruningSettings, max_epochs: int) -> BasePruner:
    """floor(log_factor(max_epochs / min_epochs)) + 1 brackets of successive halving.

    The first rung of bracket b is at `min_epochs * reduction_factor**b`. A trial's bracket follows from the study's
    name and its number, and it competes within its bracket only. Optuna's max_resource is `max_epochs`, not "auto",
    which would take it from the first complete trial. That would be too small if this trial stopped by its own
    patience.
    """
    _check_first_rung(settings, max_epochs)
    return HyperbandPruner(
        min_resource=settings.min_epochs, max_resource=max_epochs, reduction_factor=settings.reduction_factor
    )


def _check_first_rung(settings: PruningSettings, max_epochs: int) -> None:
    # Optuna accepts this silently; Hyperband then has no bracket and never prunes.
    if settings.min_epochs > max_epochs:
        raise InputError(
            f"pruning.min_epochs must be at most training.max_epochs ({max_epochs}) with the pruner "
            f"{settings.pruner}, got {settings.min_epochs}",
            hint="lower pruning.min_epochs, raise training.max_epochs, or use the pruner none",
        )
