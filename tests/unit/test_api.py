"""The Python API's edges: what `import hpsearch` costs, what it takes for a definition, what it refuses."""

from __future__ import annotations

import ast
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpsearch
from hpsearch import api
from hpsearch.errors import InputError
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.objective import Objective

DOCUMENT: dict[str, Any] = {"name": "small", "data": {"dataset": "digits"}, "search": {"learning_rate": [0.1]}}


def test_importing_the_package_brings_the_api_only_when_it_is_asked_for() -> None:
    program = (
        "import sys, hpsearch; assert {'run', 'load', 'objective', 'Study'} <= set(dir(hpsearch)); "
        "heavy = {'torch', 'optuna', 'hpsearch.api'} & sys.modules.keys(); assert not heavy, heavy; "
        "from hpsearch import Study; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_type_checkers_are_told_of_the_names_that_are_there() -> None:
    stub = ast.parse((Path(hpsearch.__file__).parent / "__init__.pyi").read_text())
    imported = [(node.module, name) for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert [name.asname for _, name in imported] == sorted(hpsearch.__all__)
    assert all(module == "hpsearch.api" and name.name == name.asname for module, name in imported)
    assert all(getattr(hpsearch, name) is getattr(api, name) for name in hpsearch.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hpsearch' has no attribute 'rnu'"):
        getattr(hpsearch, "rnu")  # noqa: B009


def test_a_definition_is_itself_its_document_or_a_files_path(tmp_path: Path) -> None:
    definition = parse_definition(DOCUMENT, source="test")
    path = tmp_path / "small.toml"
    path.write_text('name = "small"\ndata.dataset = "digits"\nsearch.learning_rate = [0.1]\n')
    for given in (definition, DOCUMENT, path, str(path)):
        assert hpsearch.objective(given, device="cpu").definition == definition
    assert isinstance(hpsearch.objective(definition), Objective)


def test_a_document_with_a_slip_says_where_it_is() -> None:
    with pytest.raises(InputError, match=r"the definition: search\.lerning_rate"):
        hpsearch.objective({**DOCUMENT, "search": {"lerning_rate": [0.1]}})


@pytest.mark.parametrize(
    ("definition", "options", "message"),
    [
        (5, {}, "must be a StudyDefinition, a dict or a path, got int"),
        ("nowhere.toml", {}, "nowhere.toml: no such study file"),
        (DOCUMENT, {"workers": 0}, "workers must be None or a whole number from 1 to 256, got 0"),
        (DOCUMENT, {"workers": True}, "workers must be None or a whole number from 1 to 256, got True"),
        (DOCUMENT, {"lanes": 0}, "lanes must be 'auto' or a whole number from 1 to"),
        (DOCUMENT, {"lanes": "8"}, "lanes must be 'auto' or a whole number from 1 to"),
        (DOCUMENT, {"device": "tpu"}, "unknown device 'tpu'"),
        (DOCUMENT, {"storage": "sqlite:///a.db"}, "storage must be PostgreSQL"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    definition: Any, options: dict[str, Any], message: str, open_folder: Path
) -> None:
    with pytest.raises(InputError, match=message):
        hpsearch.run(definition, **options)
    assert not (open_folder / "home" / "postgres").exists()


def test_a_traceback_shows_the_hint() -> None:
    with pytest.raises(InputError) as caught:
        hpsearch.run("nowhere.toml")
    assert "hint: see the studies/ folder" in "".join(traceback.format_exception(caught.value))


def test_arrays_of_a_notebook_are_the_data_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path))
    x, y = np.eye(60)[:, :4].astype(np.float32), np.arange(60) % 3
    arrays = {"x_train": x, "y_train": y, "x_test": x[:9], "y_test": y[:9]}
    document = {"name": "a", "data": {"arrays": arrays}, "search": {"learning_rate": [0.1]}}
    objective = hpsearch.objective(document, device="cpu")
    assert Path(objective.definition.data.dataset).parent == tmp_path / "arrays"
