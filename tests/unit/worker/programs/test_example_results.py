"""Files with the results of single examples: what is read, and what is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpsearch.errors import InputError
from hpsearch.worker.programs.example_results import MOST_EXAMPLES, ExampleResults, read_results

RIGHT = [True, False, True, True]


@pytest.mark.parametrize("content", ["1011", "1 0 1 1\n", "1,0,1,1", "1\n0\r\n1\n1\n"])
def test_texts(tmp_path: Path, content: str) -> None:
    (tmp_path / "results").write_text(content)
    assert read_results(tmp_path / "results").unpacked().tolist() == RIGHT


@pytest.mark.parametrize("kind", ["bool", "u1", "<i8", ">f4"])
def test_arrays(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "results.npy", np.array(RIGHT).astype(kind))
    assert read_results(tmp_path / "results.npy").unpacked().tolist() == RIGHT


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 2)), r"array of shape \[2, 2\]"),
        (np.array([0, 2]), "something else than 0 and 1"),
        (np.array([0.0, np.nan]), "something else than 0 and 1"),
        (np.array(["a"]), "and type <U1"),
        (np.array([{}], dtype=object), "pickle|Object arrays"),
        (np.zeros(0), "has 0 examples"),
        (np.zeros(MOST_EXAMPLES + 1, dtype=bool), "has 1,000,001 examples"),
        (np.zeros(2 * MOST_EXAMPLES), "more than 1,000,000 examples"),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "results.npy", array)
    with pytest.raises(InputError, match=reason):
        read_results(tmp_path / "results.npy")


@pytest.mark.parametrize("content", ["", "yes", "10x", "\x93NUMPY"])
def test_wrong_texts(tmp_path: Path, content: str) -> None:
    (tmp_path / "results").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="results"):
        read_results(tmp_path / "results")


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no regular file"):
        read_results(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no regular file"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_results(tmp_path / "nothing")


@pytest.mark.parametrize(
    "header", ["{'descr': '<f8', ", "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,)}"]
)
def test_a_damaged_array_is_refused_in_one_line(tmp_path: Path, header: str) -> None:
    (tmp_path / "results.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(InputError, match=r"cannot be read as \.npy"):
        read_results(tmp_path / "results.npy")


def test_no_descriptor_is_left_by_what_cannot_be_read(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for path in (tmp_path, tmp_path / "nothing", Path("half a pair \ud800")):
        with pytest.raises(InputError):
            read_results(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_copies_are_removed_and_the_programs_own_files_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    control = tmp_path / "control"
    control.mkdir()
    results = ExampleResults(7, tmp_path, control)
    for path in (control / "correct-3-17", control / "correct-3-18", control / "correct-12-17", tmp_path / "own"):
        path.write_text("10")
    (control / "correct-1-1").mkdir()  # whatever a program does there
    assert results.take("own", is_wanted=True) is not None
    results.sweep(3)
    (control / "correct-1-1").rmdir()
    results.sweep(3)
    assert [path.name for path in control.iterdir()] == ["correct-12-17"]
    assert (tmp_path / "own").exists()
    for named in (12, "nul\0", "nothing"):
        assert results.take(named, is_wanted=True) is None
    assert [record.message for record in caplog.records] == [
        "trial 7: its results of single examples are left out: `correct` must be a path, got 12"
    ]


def test_what_a_program_could_not_send_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = ExampleResults(7, tmp_path, tmp_path)
    assert results.take({"error": "ValueError: 0.3 is neither 0 nor 1"}, is_wanted=True) is None
    assert "left out: ValueError: 0.3 is neither 0 nor 1" in caplog.text
