"""docs/own-scripts.md, followed word for word on a smaller grid; its lines of code are those of the examples."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.cli.main import run_command_line
from hpsearch.cli.options import open_storage
from hpsearch.study.study_file import parse_definition

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "own_scripts"
SCRIPTS, _, REST = (ROOT / "docs" / "own-scripts.md").read_text().partition("\n# An Optuna objective as a trial\n")
OBJECTIVE = REST.partition("\n# Reference\n")[0]
BLOCK = re.compile(r"^```(python|toml|console|diff)\n(.*?)^```$|^    (cp [^\n]*)$", re.DOTALL | re.MULTILINE)


def steps(page: str = SCRIPTS) -> list[tuple[str, str]]:
    """What the reader does, in order: ("write", content of a file), ("copy", arguments) or ("run", a command)."""
    found = []
    for kind, body, copied in BLOCK.findall(page):
        if copied:
            found.append(("copy", copied))
        elif kind in ("python", "toml"):
            found.append(("write", body))
        elif kind == "console":
            found += [("run", command) for command in re.findall(r"^\$ (.*)", body, re.MULTILINE)]
    return found


def smaller(text: str) -> str:
    """Four points instead of twelve."""
    for before, after in (("{ log10 = [0, -3] }", "[0.1, 0.01]"), ("[16, 64, 256]", "[16, 64]")):
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.fixture(autouse=True)
def _signal_handlers_afterwards() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_lines_that_the_page_adds_are_those_that_make_the_one_script_the_other() -> None:
    before, after = ((EXAMPLES / name).read_text() for name in ("train_pytorch.py", "train_pytorch_reporting.py"))
    added = [line[1:] for kind, body, _ in BLOCK.findall(SCRIPTS) if kind == "diff" for line in body.splitlines()]
    assert len(added) > 10
    for line in added:
        assert line in after.splitlines()
        assert line not in before.splitlines()
    body = "\n".join(after.splitlines()[5:])
    body = body.replace("import hpsearch.trial\n\n", "").replace("range(first_epoch,", "range(1,")
    for line in added:
        body = body.replace(f"{line}\n", "", 1)
    assert re.sub(r"\n{2,}", "\n", body) == re.sub(r"\n{2,}", "\n", "\n".join(before.splitlines()[5:]))


def test_the_studies_of_the_page_are_those_of_the_examples() -> None:
    files = [text for what, text in steps() if what == "write"]
    shown = [parse_definition(tomllib.loads(text), source="page") for text in files]
    names = ("pytorch", "pytorch-reporting")
    shipped = [parse_definition(tomllib.loads((EXAMPLES / f"{n}.toml").read_text()), source=n) for n in names]
    assert [d.search for d in shown] == [d.search for d in shipped]
    assert [d.pruning for d in shown] == [d.pruning for d in shipped]


@pytest.mark.slow  # each trial imports torch
@pytest.mark.timeout(900)
def test_the_page_works_as_it_is_written(
    tmp_path: Path, database_url: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "own-scripts"))
    done: list[str] = []
    for what, text in steps():
        if what == "write":
            name = re.match(r"# (\S+\.toml)", text)
            assert name, "the first line of a file names it"
            Path(name[1]).write_text(smaller(text))
        elif what == "copy":
            _, source, target = shlex.split(text)
            shutil.copy(EXAMPLES / Path(source).name, target)
        else:
            run(text)
            done.append(text.split()[1])
    assert done == ["check", "run", "status", "run", "confirm", "export", "report"]
    exported = json.loads(Path("best.json").read_text())
    assert exported["estimate"]["evidence"] == "confirmed"
    assert Path("report.html").stat().st_size > 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_objective_of_the_page_works_as_it_is_written(
    tmp_path: Path, database_url: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "objective"))
    done: list[str] = []
    for what, text in steps(OBJECTIVE):
        if what == "write":
            name = re.match(r"# (\S+)", text)
            assert name, "the first line of a file names it"
            Path(name[1]).write_text(text.replace("num_points = 20", "num_points = 8"))
        else:
            run(text)
            done.append(text.split()[1])
    assert done == ["check", "run", "status", "confirm", "export", "run"]
    exported = json.loads(Path("best.json").read_text())
    assert {"penalty", "alpha"} <= exported["parameters"].keys()
    assert exported["objective"] == {"function": "mine:objective"}
    with open_storage(database_url) as database:
        trials = optuna.load_study(study_name="mine-objective", storage=database.storage).trials
    assert len(trials) == 8
    for trial in trials:
        assert min(trial.intermediate_values) == 1, "step 0 of Optuna"
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert {max(trial.intermediate_values) for trial in complete} == {20}
    assert exported["estimate"]["evidence"] == "confirmed"


def run(command: str, *, code: int = 0) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        found = run_command_line(shlex.split(command)[1:])
    assert found == code, f"$ {command}\n{output.getvalue()}"
    return output.getvalue()
