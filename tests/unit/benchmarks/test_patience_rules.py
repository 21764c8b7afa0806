"""Replayed rules end planted curves where they should, with the best error that they had seen by then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.patience_rules import BASELINE, Contender, Table, main, replay


def table_of(*curves: list[int]) -> Table:
    """Points whose errors, in images of 10,000, are these: the first so many images are wrong."""
    wrong = np.array(curves)
    is_right = np.arange(10_000) >= wrong[..., None]
    return Table(errors=wrong / 10_000, nlls=np.ones(wrong.shape), bits=np.packbits(is_right, axis=-1))


BY_LAST = Contender(name="last", level=0.05, reference="last best")
BY_REFERENCE = Contender(name="reference", level=0.05)


def test_a_slow_and_steady_improvement_is_significant_against_the_reference_only() -> None:
    """4 images at a time, none lost: 4 of 4 is no evidence at 0.05, 8 of 8 since the reference is."""
    table = table_of([500 - 4 * epoch for epoch in range(20)])
    assert replay(BASELINE, table, 0, 3000) == (20, 0.0424, True)
    assert replay(BY_REFERENCE, table, 0, 3000) == (20, 0.0424, True)
    assert replay(BY_LAST, table, 0, 3000) == (3, 0.0492, False)


def test_a_lucky_best_buys_patience_from_the_old_rule_only() -> None:
    """3 images fewer of 100 are below 0.995, and may be chance."""
    table = table_of([900, 100, 97, *[100] * 10])
    assert replay(BASELINE, table, 0, 2000) == (5, 0.0097, False)
    assert replay(BY_REFERENCE, table, 0, 2000) == (3, 0.0097, False)


def test_a_point_that_diverges_ends_there() -> None:
    table = table_of([500, 400, 9000, 9000])
    table.nlls[0, 2:] = np.nan
    assert replay(BY_REFERENCE, table, 0, 5000) == (3, 0.04, False)
    assert table.is_finite.tolist() == [False]


def test_the_tables_are_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed in range(2):
        table = table_of([500 - seed, 400, 300, 299], [900, 800, 700, 690], [500, 6000, 6000, 6000])
        table.nlls[2, 1:] = np.inf
        path = tmp_path / f"{seed}.npz"
        np.savez(path, err=table.errors, nll=table.nlls, bits=table.bits)
        paths.append(str(path))
    main([*paths, "-o", str(tmp_path / "patience_rules.json")])

    printed = capsys.readouterr().out
    assert "### Patience 2000, all finite points (2 points, 2 seeds)" in printed
    assert "### Patience 5000, good points (1 points, 2 seeds)" in printed
    assert "| significance 0.01, against the last significant best |" in printed
    document = json.loads((tmp_path / "patience_rules.json").read_text())
    assert document["settings"]["finite_points"] == 2
    lost = [one for one in document["measurements"] if one["name"].endswith("(DLT): error lost")]
    assert [one["values"] for one in lost] == [[0.0, 0.0]] * 4
