"""What `status` prints for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from hpsearch.console.tables import status_view
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.rows.round_rows import StoredRound
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition


def running(number: int, **attributes: Any) -> TrialSummary:
    return TrialSummary(
        trial_id=number,
        number=number,
        point=number,
        is_current=True,
        stored_state=StoredState.RUNNING,
        parameters={},
        stored_distributions={},
        value=None,
        loss=None,
        attributes=attributes,
        artifact_records={},
        num_epochs=0,
        started_at=datetime(2026, 11, 21, tzinfo=UTC),
        ended_at=None,
    )


def shown(*trials: TrialSummary, rounds: tuple[StoredRound, ...] = ()) -> list[str]:
    definition = parse_definition({"name": "small", "search": {"learning_rate": [0.1, 0.2]}}, source="test")
    study = StoredStudy(study_id=1, definition=definition, dataset_checksums={}, versions={})
    summary = StudySummary(study=study, trials=trials, round_rows=rounds)
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(status_view(StudyStatus(summary=summary, confirmation=None)))
    lines = capture.get().splitlines()[1:-1]  # between the headline and the best trials
    lines.remove("not checked")
    return [
        line for line in lines if not line.startswith("by other programs")
    ]  # these trials are not all of its points


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


def a_round(number: int, num_points: int, reason: str) -> StoredRound:
    opened_at = datetime(2026, 11, 21, tzinfo=UTC)
    return StoredRound(number=number, num_points=num_points, reason=reason, opened_at=opened_at)


def test_last_round_is_shown_with_its_reason_and_then_why_the_search_ended() -> None:
    rounds = (a_round(0, 9, "the grid's 9 points"), a_round(1, 1, "lambda_2: settled at 0"))
    assert shown(rounds=rounds) == ["round 1, 1 point: lambda_2: settled at 0"]
    assert shown(rounds=(*rounds, a_round(2, 0, "nothing differs"))) == [
        "round 1, 1 point: lambda_2: settled at 0",
        "the search ended after round 1: nothing differs",
    ]
