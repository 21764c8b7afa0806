"""`hpsearch data describe`: of a study file or a bare data set, quickly, and without the test part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpsearch.cli.main import run_command_line


def describe(*arguments: str) -> int:
    return run_command_line(["data", "describe", *arguments])


def study(folder: Path, dataset: str) -> Path:
    path = folder / "study.toml"
    path.write_text(f'name = "a"\n[data]\ndataset = "{dataset}"\n[search]\nlearning_rate = [0.1]\n')
    return path


def test_a_study_file_and_a_bare_name_give_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe(str(study(tmp_path, "digits"))) == 0
    of_study = capsys.readouterr().out
    assert describe("digits") == 0
    assert capsys.readouterr().out == of_study
    for part in ("28x28 images", "classification: 784 inputs, 10 outputs", "1,285 training, 256 validation", "@@@"):
        assert part in of_study


def test_overrides_apply_to_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (str(study(tmp_path, "digits")), "digits"):
        assert describe(source, "--set", "data.train_samples=100", "--json") == 0
        assert json.loads(capsys.readouterr().out)["num_train"] == 100


def test_the_sheet_is_written_for_images_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = tmp_path / "sheet.png"
    assert describe("digits", "--json", "--output", str(sheet)) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    json.loads(capsys.readouterr().out)  # what is said about the sheet is not on stdout
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = "import numpy as np\ndef rows(part):\n    return np.eye(12)[:, :4], np.arange(12) % 2\n"
    Path("described_rows.py").write_text(text)
    assert describe("described_rows:rows", "--output", str(tmp_path / "no.png")) == 2
    assert "has no images" in capsys.readouterr().err
    assert describe("described_rows:rows") == 0
    assert "first training rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-set"], "unknown data set 'no-such-set'"),
        (["digits", "--set", "data.image_size=[3, 3]"], "data.image_size has no effect"),
        (["digits", "--set", "data.nothing=3"], "data.nothing"),
        (["missing.toml"], "missing.toml: no such study file"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert describe(*arguments) == 2
    assert message in capsys.readouterr().err


def test_nothing_that_takes_time_is_loaded_and_no_test_file_is_opened(tmp_path: Path) -> None:
    """Test files are damaged here, and an audit hook lists what is opened."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, array in (("images-idx3", np.zeros((60, 5, 4))), ("labels-idx1", np.arange(60) % 3)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
        (folder / f"t10k-{name}-ubyte").write_bytes(b"damaged")
    program = (
        "import sys\nfrom hpsearch.cli.main import run_command_line\nopened = []\n"
        "sys.addaudithook(lambda event, arguments: event == 'open' and opened.append(str(arguments[0])))\n"
        f"code = run_command_line(['data', 'describe', {str(folder)!r}])\n"
        "heavy = [name for name in ('torch', 'optuna', 'sqlalchemy', 'sklearn', 'scipy') if name in sys.modules]\n"
        f"print(code, heavy, [path for path in opened if {str(folder)!r} in path], file=sys.__stderr__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    opened = [str(folder / f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    assert done.stderr.splitlines()[-1] == f"0 [] {opened}"
