"""What `status` prints for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from hpsearch.cli.tables import summary_view
from hpsearch.results.summary import StudySummary, TrialSummary
from hpsearch.service.registry import StoredStudy
from hpsearch.study import parse_definition


def running(number: int, **attributes: Any) -> TrialSummary:
    return TrialSummary(
        trial_id=number,
        number=number,
        point=number,
        is_current=True,
        state=TrialState.RUNNING,
        parameters={},
        distributions={},
        value=None,
        attributes=attributes,
        artifact_records={},
        num_epochs=0,
        started_at=datetime(2026, 11, 21, tzinfo=UTC),
        ended_at=None,
    )


def shown(*trials: TrialSummary) -> list[str]:
    definition = parse_definition({"name": "small", "search": {"learning_rate": [0.1, 0.2]}}, source="test")
    study = StoredStudy(study_id=1, definition=definition, dataset_checksums={}, versions={})
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(summary_view(StudySummary(study=study, trials=trials)))
    return capture.get().splitlines()[1:-1]  # between the headline and the best trials


def test_each_worker_is_shown_with_its_device_and_its_trials() -> None:
    on_gpu = {"worker": "node7:9", "device": "cuda:1 (NVIDIA Fake, GPU-1)"}
    lines = shown(running(0, **on_gpu), running(1, worker="node7:8", device="cpu"), running(3, **on_gpu))
    assert lines == ["node7:8 on cpu: trial 1", "node7:9 on cuda:1 (NVIDIA Fake, GPU-1): trials 0, 3"]


def test_many_trials_of_a_worker_are_counted_and_nothing_is_taken_for_markup() -> None:
    lines = shown(*(running(number, worker="[red]w", device="cpu") for number in range(64)))
    assert lines == ["[red]w on cpu: trials 0, 1, 2, 3, 4, 5, 6, 7 and 56 more"]


@pytest.mark.parametrize("attributes", [{}, {"worker": "w"}])
def test_a_trial_that_does_not_tell_is_shown_all_the_same(attributes: dict[str, str]) -> None:
    assert shown(running(4, **attributes)) == [f"{attributes.get('worker', 'a worker')} on its device: trial 4"]
