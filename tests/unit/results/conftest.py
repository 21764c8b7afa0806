"""Summaries made by hand, without a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from optuna.distributions import distribution_to_json
from optuna.trial import TrialState

from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import EpochRecord, TrialSummary
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.store.studies import StoredStudy
from hpsearch.study.space import ParameterValue
from hpsearch.study.study_file import parse_definition

MOMENT = datetime(2026, 11, 21, 7, 5, tzinfo=UTC)

TrialMaker = Callable[..., TrialSummary]
SummaryMaker = Callable[..., StudySummary]


@pytest.fixture
def make_trial() -> TrialMaker:
    return _trial


@pytest.fixture
def make_summary() -> SummaryMaker:
    return _summary


@pytest.fixture
def summary() -> StudySummary:
    """Three learning rates: two complete, one pruned."""
    trials = [
        _trial(1, 0.02, {"learning_rate": 0.01}),
        _trial(0, 0.05, {"learning_rate": 0.1}),
        _trial(2, 0.9, {"learning_rate": 0.001}, state=TrialState.PRUNED),
    ]
    return _summary(trials, {"learning_rate": {"log10": [-1, -3]}})


def _trial(
    number: int,
    value: float | None,
    parameters: dict[str, ParameterValue] | None = None,
    *,
    state: TrialState = TrialState.COMPLETE,
    curve: Sequence[float] | None = None,
    is_current: bool = True,
    nll: float | None = None,
    **attributes: Any,
) -> TrialSummary:
    """A trial whose curve goes from 0.9 to its value, unless another is given."""
    errors = ([] if value is None else [0.9, value]) if curve is None else curve
    written = {"stop_reason": "patience-exhausted", "best_epoch": len(errors), "best_validation_nll": nll}
    return TrialSummary(
        trial_id=100 + number,
        number=number,
        point=number,
        is_current=is_current,
        stored_state=StoredState[state.name],
        parameters=parameters or {},
        stored_distributions={},
        value=value,
        loss=value,
        attributes={key: v for key, v in {**written, **attributes}.items() if v is not None},
        artifact_records={},
        num_epochs=len(errors),
        started_at=MOMENT,
        ended_at=MOMENT if state.is_finished() else None,
        curve=tuple(_epoch(epoch, error) for epoch, error in enumerate(errors, start=1)),
    )


def _epoch(epoch: int, error: float) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        value=error,
        train_nll=2 * error,
        validation_nll=3 * error,
        learning_rate=0.1,
        seconds=1.0,
    )


def _summary(trials: Sequence[TrialSummary], search: dict[str, Any] | None = None, **sections: Any) -> StudySummary:
    """A study over `search` with the definitions' own distributions on its trials."""
    document = {"name": "by-hand", "search": search or {}, **sections}
    definition = parse_definition(document, source="test")
    distributions = {d.name: distribution_to_json(d.grid_distribution()) for d in definition.search.dimensions}
    for trial in trials:
        trial.stored_distributions.update({name: distributions[name] for name in trial.parameters})  # type: ignore[attr-defined]
    study = StoredStudy(
        study_id=1,
        definition=definition,
        dataset_checksums={"train-images-idx3-ubyte": "ba89" * 16},
        versions={"hpsearch": "0.1.0", "torch": "2.6.0"},
    )
    return StudySummary(study=study, trials=tuple(trials), read_at=MOMENT)
