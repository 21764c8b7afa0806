"""The documents about Python are programs that work: the notebook, and the examples of docs/python-api.md."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "hpsearch.ipynb"


@pytest.fixture
def environment(open_folder: Path, database_url: str, tmp_path: Path) -> dict[str, str]:
    """A home of its own, an own database, nothing of the user's, and no settings or history of Jupyter's."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    return {
        **own,
        "HPSEARCH_HOME": str(open_folder / "home"),
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_ARTIFACTS": str(tmp_path / "artifacts"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYTHONPATH": str(ROOT),
    }


def test_the_notebook_runs_from_top_to_bottom(environment: dict[str, str], tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240).execute(cwd=str(tmp_path), env=environment)
    by_source = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = {key: "".join(map(_text, outputs)) for key, outputs in by_source.items()}
    assert "hpsearch.Study 'notebook-digits'" in _find(said, "hpsearch.run")
    assert "6 complete" in _find(said, "hpsearch.run")
    assert _find(said, "trials_dataframe()\n").count("COMPLETE") == 6
    assert "application/vnd.plotly.v1+json" in str(_find(by_source, "update_layout"))
    assert "'hidden.weight': (32, 784)" in _find(said, "best_parameters")
    assert "params_learning_rate" in _find(said, "mine.optimize")


def test_the_notebook_is_stored_without_what_a_run_left_in_it() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_examples_of_the_python_document_are_a_program_that_works(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; pytest makes an error of every warning."""
    document = (ROOT / "docs" / "python-api.md").read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL))
    assert program.count("hpsearch.") == 4  # run, load twice, objective
    for name in ("HPSEARCH_HOME", "HPSEARCH_STORAGE", "HPSEARCH_ARTIFACTS"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "python-api.md", "exec"), {"__name__": "__main__"})
    assert "'hidden.weight': (16, 784)" in capsys.readouterr().out
    for name in ("best.json", "best.safetensors", "report.html"):
        assert (tmp_path / name).stat().st_size > 0


def _find(by_source: dict[str, Any], part: str) -> Any:
    (found,) = [value for source, value in by_source.items() if part in source]
    return found


def _text(output: nbformat.NotebookNode) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))
