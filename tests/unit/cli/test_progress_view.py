"""Progress among JSON logs: objects on stderr, and no bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from hpsearch.cli.progress_view import download_progress, follow
from hpsearch.logs import LogFormat, configure_logging
from hpsearch.service.ledger import PointCounts
from hpsearch.service.progress import Progress


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
    assert line["message"] == "3 complete, 0 pruned, 0 running, 0 waiting · best 12.50% (trial 2)"


def test_a_download_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with download_progress() as show:
        show("train-images", 10, 20)
        show("train-images", 20, 20)
    assert capsys.readouterr().err == ""
