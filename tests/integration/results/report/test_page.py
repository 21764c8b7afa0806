"""Reports of real studies: written from the database, or refused with the counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import ArtifactError, NothingCompleteError, StudyNotFoundError
from hpsearch.results.report.page import write_report


def test_a_report_is_written_from_the_database(learning_rates: Any, tmp_path: Path) -> None:
    learning_rates.complete(learning_rates.claim(), [0.9, 0.0169])
    learning_rates.complete(learning_rates.claim(), [0.9, 0.5])
    path = tmp_path / "report.html"
    write_report(learning_rates.database, "made-up", path)
    html = path.read_text()
    assert "<h1>made-up</h1>" in html
    assert "<strong>1.69 %</strong>" in html
    assert html.count('class="plot"') == 5


def test_a_report_of_nothing_complete_tells_the_counts_and_leaves_the_old_file(
    learning_rates: Any, tmp_path: Path
) -> None:
    learning_rates.prune(learning_rates.claim(), [0.9])
    learning_rates.claim()
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(NothingCompleteError) as caught:
        write_report(learning_rates.database, "made-up", path)
    assert "2 waiting, 1 running, 0 complete, 1 pruned, 0 given up" in str(caught.value)
    assert path.read_text() == "old"


def test_a_report_of_no_study_is_an_input_error(learning_rates: Any, tmp_path: Path) -> None:
    with pytest.raises(StudyNotFoundError):
        write_report(learning_rates.database, "other", tmp_path / "report.html")


def test_a_report_that_cannot_be_written_names_its_file(learning_rates: Any, tmp_path: Path) -> None:
    learning_rates.complete(learning_rates.claim(), [0.1])
    path = tmp_path / "missing" / "report.html"
    with pytest.raises(ArtifactError, match=f"cannot write {path}"):
        write_report(learning_rates.database, "made-up", path)
