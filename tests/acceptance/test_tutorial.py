"""docs/tutorial.md, followed word for word on digits: its files are written, its commands run as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsearch.cli.main import run_command_line

pytestmark = pytest.mark.acceptance

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(toml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps() -> list[tuple[str, str]]:
    """What the reader does, in order: ("write", content of a file) or ("run", a command)."""
    found = []
    for kind, body in BLOCK.findall(TUTORIAL):
        commands = re.findall(r"^\$ (.*)", body, re.MULTILINE)  # their answers stand below them
        found += [("write", body)] if kind == "toml" else [("run", command) for command in commands]
    return found


def on_digits(text: str) -> str:
    """As the tutorial's first paragraph has it, and with fewer epochs."""
    for before, after in (
        ('dataset = "mnist"', 'dataset = "digits"'),
        ("train_samples = 10_000\n", ""),
        ("max_epochs = 40\n", "max_epochs = 8\n"),
    ):
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.fixture(autouse=True)
def _signal_handlers_afterwards() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.timeout(600)
def test_tutorial_works_as_it_is_written(
    tmp_path: Path, database_url: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which spares the seconds that a Python with torch takes; workers are real."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "tutorial"))
    monkeypatch.setenv("HPSEARCH_DEVICE", "cpu")
    monkeypatch.setenv("HPSEARCH_LANES", "4")  # to measure how many pay takes seconds
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done: list[str] = []
    for what, text in steps():
        if what == "write":
            name = re.match(r"# (\S+\.toml)", text)
            assert name, "the first line of a file names it"
            Path(name[1]).write_text(on_digits(text))
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = run_command_line(shlex.split(text)[1:])
        # The vault opens once: whoever asks again is refused, and told the number.
        is_second_look = text.startswith("hpsearch test") and text in done
        assert code == (2 if is_second_look else 0), f"$ {text}\n{output.getvalue()}"
        done.append(text)
    assert done.count("hpsearch test tutorial") == 2
    asked = {command.split()[1] for command in done}
    assert asked == {"run", "status", "report", "confirm", "test", "export"}
    assert all(Path(name).stat().st_size > 0 for name in ("best.json", "best.safetensors", "report.html"))
