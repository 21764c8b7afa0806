"""A user's function is found by its name, and runs without torch where torch is not loaded."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from hpsearch.errors import InputError
from hpsearch.foreign_code import failure, foreign_code, import_function


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"functions_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "def good(part):\n    return part\n\ndef bad(part):\n    raise ValueError('a\\nb')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_a_function_of_the_working_directory_is_found(module: str) -> None:
    assert import_function("data.dataset", f"{module}:good")("train") == "train"


def test_the_key_of_the_study_file_is_named(module: str) -> None:
    for key in ("data.dataset", "model.family"):
        with pytest.raises(InputError, match=f"^{key} {module}:god: {module} has no function or class 'god'") as caught:
            import_function(key, f"{module}:god")
        assert caught.value.hint == 'did you mean "good"?'


def test_a_failure_is_one_line_with_the_place_in_the_users_file(module: str) -> None:
    bad = import_function("data.dataset", f"{module}:bad")
    with pytest.raises(ValueError, match="a") as caught:
        bad("train")
    error = failure("data.dataset", f"{module}:bad", "it failed", caught.value)
    assert str(error).splitlines()[0] == f"data.dataset {module}:bad: it failed: ValueError: a ({module}.py:5)"


def test_where_torch_is_not_loaded_it_stays_so_and_the_rest_is_put_back() -> None:
    program = (
        "import sys, os\nfrom hpsearch.foreign_code import foreign_code\nfolder = os.getcwd()\n"
        "with foreign_code('x'):\n    os.chdir('/')\n"
        "print('torch' in sys.modules, os.getcwd() == folder)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_where_torch_is_loaded_its_defaults_are_put_back() -> None:
    import torch

    before = torch.get_default_dtype(), torch.random.get_rng_state()
    with foreign_code("x"):
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(3)
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
