"""docs/tutorial.md, followed word for word on digits: its files are written, its commands run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(toml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def steps() -> list[tuple[str, str]]:
    """What the reader does, in order: ("write", content of a file) or ("run", a command)."""
    found = []
    for kind, body in BLOCK.findall(TUTORIAL):
        if kind == "toml":
            found.append(("write", body))
        else:
            # A command's answers stand below it; a line that begins with `> ` continues the command.
            commands = re.findall(r"^\$ (.*(?:\n> .*)*)", body, re.MULTILINE)
            found += [("run", command.replace("\\\n> ", "")) for command in commands]
    return found


def on_digits(text: str) -> str:
    assert 'dataset = "mnist"' in text
    return text.replace('dataset = "mnist"', 'dataset = "digits"')


@pytest.mark.timeout(600)
def test_tutorial_works_as_it_is_written(tmp_path: Path, open_folder: Path) -> None:
    environment = {
        **os.environ,
        "HPSEARCH_HOME": str(open_folder / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    codes: dict[str, int] = {}
    outputs: dict[str, str] = {}
    for what, text in steps():
        if what == "write":
            name = re.match(r"# (\S+\.toml)", text)
            assert name, "the first line of a file names it"
            (tmp_path / name[1]).write_text(on_digits(text))
            continue
        done = subprocess.run(
            shlex.split(text), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        codes[text], outputs[text] = done.returncode, done.stdout + done.stderr
        # The vault opens once: whoever asks again is refused, and told the number.
        is_second_look = text.startswith("hpsearch test") and "--again" not in text and text in list(codes)[:-1]
        assert done.returncode == (2 if is_second_look else 0), f"$ {text}\n{outputs[text]}"
    asked = " ".join(codes)
    for command in ("run", "status", "confirm", "test", "export", "report"):
        assert f"hpsearch {command} " in asked, f"the tutorial shows {command}"
    assert (tmp_path / "best.json").exists()
    assert (tmp_path / "report.html").exists()
