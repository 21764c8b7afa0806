"""The page of the tutorial's runs says what its curves say, and `make notes` can write it."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import notes
from benchmarks.notes import FIGURE, PAGE, RUNS, Run, draw, write_between
from hpsearch.errors import HpsearchError
from hpsearch.results.trial_summary import EpochRecord


def curve_of(run: Run) -> list[EpochRecord]:
    with run.csv.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == notes.COLUMNS
    names = {"validation_zero_one": "value"}
    return [EpochRecord(**{names.get(k, k): (int if k == "epoch" else float)(v) for k, v in r.items()}) for r in rows]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_page_says_what_the_curves_say(run: Run) -> None:
    curve = curve_of(run)
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {run.title} |")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3] == f"**{100 * min(record.value for record in curve):.2f} %**"
    best_epoch = int(cells[4])
    assert curve[best_epoch - 1].value == min(record.value for record in curve)
    assert int(cells[5]) == len(curve) == curve[-1].epoch


def test_the_figure_is_that_of_the_curves() -> None:
    assert FIGURE.read_text() == draw({run: curve_of(run) for run in RUNS})
    assert len(ElementTree.fromstring(FIGURE.read_text()).findall("{*}polyline")) == 2 * len(RUNS)


def test_a_part_of_the_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    write_between(page, "results", "new")
    assert "<!-- results -->\nnew\n<!-- end of results -->" in page.read_text()
    before, _, after = page.read_text().partition("<!-- results -->\nnew\n<!-- end of results -->")
    assert PAGE.read_text().startswith(before)
    assert PAGE.read_text().endswith(after)
    with pytest.raises(HpsearchError, match="has no markers"):
        write_between(page, "nothing", "new")
