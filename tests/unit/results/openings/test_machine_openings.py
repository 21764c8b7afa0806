"""vault.jsonl: lines that survive each other, damage and half-written neighbours."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hpsearch.results.openings.machine_openings import (
    MachineOpening,
    append_machine_opening,
    describe_machine_openings,
    read_machine_openings,
)

OPENING = MachineOpening(
    intent_id="a" * 32,
    at="2026-11-28T07:05:00Z",
    by="anna@node7",
    study="small",
    database="node7:5432/studies",
    files=frozenset({"sha256:1", "trained-on:2"}),
)


def test_an_opening_is_known_by_any_mark_of_its_files_and_by_no_other(tmp_path: Path) -> None:
    path = tmp_path / "home" / "vault.jsonl"
    assert read_machine_openings(path, {"sha256:1"}) == ([], [])
    assert append_machine_opening(path, OPENING) == []
    assert append_machine_opening(path, with_values(num_images=40, num_errors=10, at="2026-11-28T07:06:00Z")) == []
    whole = with_values(num_images=40, num_errors=10)
    for mark in OPENING.files:
        assert read_machine_openings(path, {mark, "other"}) == ([whole], [])
    assert read_machine_openings(path, {"other"}) == ([], [])
    assert read_machine_openings(path, OPENING.files, without={OPENING.intent_id}) == ([], [])
    (_, line) = describe_machine_openings([whole])
    assert line == "  2026-11-28T07:05:00Z by anna@node7 for study 'small' in node7:5432/studies: test error 25.00 %"


def with_values(**values: Any) -> MachineOpening:
    return OPENING.model_copy(update=values)


GOOD = {**OPENING.model_dump(), "intent_id": "b", "files": ["sha256:1"]}


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'"text"',
        json.dumps({**GOOD, "files": None}).encode(),
        json.dumps({**GOOD, "files": [1]}).encode(),
        json.dumps({**GOOD, "at": 5}).encode(),
        json.dumps({**GOOD, "num_images": "many", "num_errors": 1}).encode(),
        json.dumps({**GOOD, "num_images": 0.5}).encode(),
        b'{"num_images": ' + b"9" * 5000 + b"}",
        json.dumps({**GOOD, "num_images": True}).encode(),
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)
def test_a_damaged_line_is_told_and_hides_no_other(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "vault.jsonl"
    path.write_bytes(line)  # and no line break after it: half a line at the end
    assert append_machine_opening(path, OPENING) == []
    openings, problems = read_machine_openings(path, {"sha256:1"})
    assert openings == [OPENING]
    assert problems == [f"ignored 1 of 2 lines of {path}, which cannot be read"]


def test_what_others_wrote_is_shown_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "vault.jsonl"
    append_machine_opening(path, with_values(by="\x1b[2Janna\u202e"))
    (opening,), _ = read_machine_openings(path, OPENING.files)
    assert opening.by == "?[2Janna?"


def test_lines_that_are_written_at_once_are_all_whole(tmp_path: Path) -> None:
    path = tmp_path / "vault.jsonl"
    path.write_bytes(b"half a line")
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        for each in range(10):
            long = frozenset({"sha256:1", "x" * 5000})
            assert append_machine_opening(path, with_values(intent_id=f"{number}-{each}", files=long)) == []

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    openings, problems = read_machine_openings(path, {"sha256:1"})
    assert len(openings) == 80
    assert problems == [f"ignored 1 of 81 lines of {path}, which cannot be read"]


def test_a_file_that_cannot_be_read_or_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    blocked = tmp_path / "file" / "vault.jsonl"
    assert read_machine_openings(blocked, {"sha256:1"})[0] == []
    (problem,) = append_machine_opening(blocked, OPENING)
    assert "cannot record this opening" in problem
    assert len(read_machine_openings(tmp_path, {"x"})[1]) == 1


def test_a_folder_whose_name_is_not_utf_8_is_found_again(tmp_path: Path) -> None:
    mark = "file:/data/" + b"caf\xe9".decode("utf-8", "surrogateescape")
    opening = with_values(files=frozenset({mark}))
    assert append_machine_opening(tmp_path / "vault.jsonl", opening) == []
    assert read_machine_openings(tmp_path / "vault.jsonl", {mark}) == ([opening], [])
