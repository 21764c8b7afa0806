"""`hpsearch check` of a study with [command]: command lines, and the command's first report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpsearch.cli.main import run_command_line

Checked = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Checked:
    """Checks a study whose command is a shell script; returns the exit code, the JSON document and the errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSEARCH_STORAGE", "postgresql://nobody@127.0.0.1:1/nothing")  # no database is asked

    def check(script: str, keys: str = "", *, run: str = '["sh", "script.sh", "{rate}"]', seconds: float = 60) -> Any:
        (tmp_path / "script.sh").write_text(script)
        (tmp_path / "study.toml").write_text(
            f'name = "checked"\n[command]\nrun = {run}\ngpus = 0\ngrace_seconds = 0.5\n{keys}\n'
            "[search]\nrate = { log10 = [-1, -3] }\n"
        )
        code = run_command_line(["check", "study.toml", "--json", "--seconds", str(seconds)])
        answer = capfd.readouterr()
        return code, json.loads(answer.out) if answer.out else {}, answer.err

    return check


REPORTS = 'echo "{\\"step\\": 2, \\"value\\": 0.25}" > $HPSEARCH_REPORTS\nsleep 600\n'


def test_three_command_lines_and_the_first_report_are_told(checked: Checked) -> None:
    code, document, told = checked(REPORTS)
    assert code == 0
    assert "the first command line runs until its first report, for " in told
    lines, report = document["findings"]
    assert lines["pictures"] == ["sh script.sh 0.01", "sh script.sh 0.1", "sh script.sh 0.001"]
    assert report["numbers"]["step"] == 2
    assert report["numbers"]["value"] == 0.25
    assert document["verdict"] == "passed"
    below = psutil.Process().children(recursive=True)
    assert not [one for one in below if one.name() == "sleep" and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("content", "verdict", "found"),
    [
        ("1011", "passed", "4 examples, of which 75.00% are right"),
        ("0.3", "warning", "holds something else than 0 and 1"),
    ],
)
def test_results_of_single_examples_are_looked_at(checked: Checked, content: str, verdict: str, found: str) -> None:
    line = 'echo "{\\"step\\": 1, \\"value\\": 0.25, \\"correct\\": \\"right\\"}" > $HPSEARCH_REPORTS\n'
    code, document, _ = checked(f"echo {content} > right\n{line}sleep 600\n")
    assert code == 0
    (finding,) = [finding for finding in document["findings"] if finding["check"] == "single examples"]
    assert finding["verdict"] == verdict
    assert found in finding["found"]


def test_variables_that_the_command_needs_stand_before_it(checked: Checked) -> None:
    keys = 'env = { LABEL = "a b" }'
    run = '["sh", "-c", "echo val $HPSEARCH_PARAM_RATE"]'
    code, document, _ = checked("", keys + '\npattern = "val ([0-9.]+)"', run=run)
    assert code == 0
    assert document["findings"][0]["pictures"][0] == (
        "LABEL='a b' HPSEARCH_PARAM_RATE=0.01 sh -c 'echo val $HPSEARCH_PARAM_RATE'"
    )
    assert document["findings"][1]["numbers"]["value"] == 0.01


def test_a_command_that_fails_ends_the_check_with_1_and_its_last_lines(checked: Checked) -> None:
    code, document, error = checked("echo began; echo no such module >&2; exit 3")
    assert code == 1
    (finding,) = [each for each in document["findings"] if each["check"] == "first report"]
    assert "exit code 3" in finding["found"]
    assert finding["pictures"] == ["began", "no such module"]
    assert "first report" in error


def test_a_pattern_that_never_matches_fails_and_shows_the_output(checked: Checked) -> None:
    code, document, _ = checked("echo val_err=0.5", 'pattern = "val_loss=([0-9.]+)"')
    assert code == 1
    finding = document["findings"][-1]
    assert finding["look_at"][0].startswith("command.pattern")
    assert finding["pictures"] == ["val_err=0.5"]


def test_no_report_in_time_is_a_warning(checked: Checked) -> None:
    code, document, _ = checked("echo working; sleep 600", seconds=1)
    assert code == 0
    finding = document["findings"][-1]
    assert (finding["verdict"], finding["pictures"]) == ("warning", ["working"])


def test_a_first_report_that_is_no_number_and_a_line_that_is_no_report_are_warnings(checked: Checked) -> None:
    code, document, _ = checked(
        '(echo nonsense; echo "{\\"step\\": 1, \\"value\\": NaN}") > $HPSEARCH_REPORTS\nsleep 600\n'
    )
    assert code == 0
    assert [each["verdict"] for each in document["findings"]] == ["passed", "warning", "warning"]
    assert "nonsense" in document["findings"][-1]["found"]


@pytest.mark.parametrize("run", ['["no-such-program", "{rate}"]', '["./script.sh", "{rate}"]'])
def test_a_command_that_cannot_start_ends_the_check_with_3(checked: Checked, run: str) -> None:
    code, document, error = checked("#!/no/such/interpreter\n", run=run)
    assert code == 3
    assert not document
    assert "hint:" in error


def test_nothing_is_left_behind(checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    checked("echo here > $HPSEARCH_FOLDER/kept\n" + REPORTS)
    assert list((tmp_path / "tmp").iterdir()) == []
