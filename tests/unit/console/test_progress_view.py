"""Progress among JSON logs: objects on stderr, and no bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from hpsearch.console.progress_view import describe, download_progress, follow
from hpsearch.logs import LogFormat, configure_logging
from hpsearch.metric import Metric
from hpsearch.store.progress import Progress
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.round_rows import StoredRound


@pytest.fixture(autouse=True)
def _json_logs() -> Iterator[None]:
    configure_logging(log_format=LogFormat.JSON)
    yield
    configure_logging()


def test_progress_of_a_study_is_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    counts = PointCounts(complete=3)
    progress = Progress(counts=counts, epochs=9, epochs_of_counted=9, best_value=0.125, best_trial=2, running=())
    with follow(cast(Any, None)) as show:
        show(progress)
    line = json.loads(capsys.readouterr().err)
    assert line["logger"] == "hpsearch.progress"
    assert line["message"] == "3 complete, 0 pruned, 0 running, 0 waiting · best 12.50 % (trial 2)"


def test_progress_of_a_search_in_rounds_names_the_round() -> None:
    opened_at = datetime(2026, 11, 21, tzinfo=UTC)
    first, second = (StoredRound(number=i, num_points=3, reason="", opened_at=opened_at) for i in (0, 1))
    end = StoredRound(number=2, num_points=0, reason="", opened_at=opened_at)
    counts = PointCounts(complete=6)
    progress = Progress(counts=counts, epochs=6, epochs_of_counted=6, best_value=None, best_trial=None, running=())
    between, ended = replace(progress, rounds=(first, second)), replace(progress, rounds=(first, second, end))
    assert describe(between, 0.0) == "round 1 · 6 complete, 0 pruned, 0 running, 0 waiting"
    assert describe(ended, 0.0) == describe(between, 0.0)
    assert (progress.is_finished, between.is_finished, ended.is_finished) == (True, False, True)


def test_a_download_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with download_progress() as show:
        show("train-images", 10, 20)
        show("train-images", 20, 20)
    assert capsys.readouterr().err == ""


def test_programs_are_shown_by_steps() -> None:
    metric = Metric(name="loss", label="loss", is_reported=True)
    progress = Progress(
        counts=PointCounts(running=1), epochs=6, epochs_of_counted=0, best_value=None, best_trial=None, running=()
    )
    assert describe(replace(progress, metric=metric), 2.0).endswith("2.00 steps/s")
