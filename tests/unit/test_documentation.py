"""What the documents say is what the code does."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hpsearch
from hpsearch.study.definition import StudyDefinition, load_definition, parse_definition
from hpsearch.study.settings import (
    DataSettings,
    ModelSettings,
    PruningSettings,
    Settings,
    StoppingSettings,
    TrainingSettings,
)
from hpsearch.study.space import SearchSettings

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "search": SearchSettings,
    "stopping": StoppingSettings,
    "pruning": PruningSettings,
}


def documented_keys(section: str) -> dict[str, str]:
    """key -> default, from the table under the section's heading."""
    text = (ROOT / "docs" / "study-file.md").read_text()
    body = re.split(r"^## ", text.split(f"## [{section}]")[1], flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", body, flags=re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_study_file_document_lists_every_key_with_its_default(section: str) -> None:
    defaults = SECTIONS[section]().model_dump(mode="json", exclude={"dimensions"})
    documented = documented_keys(section)
    assert list(documented) == list(defaults)
    for key, default in defaults.items():
        if default is not None:
            assert json.loads(documented[key].split(";")[0]) == default, key


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("studies/**/*.toml"), *ROOT.glob("examples/*.toml")]), ids=lambda path: path.stem
)
def test_every_shipped_study_is_valid_and_says_what_it_shows_and_how_long_it_takes(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(load_definition(path), StudyDefinition)
    assert caplog.messages == []  # no key without effect
    comment = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert re.search(r"minute|hour|night|second", comment, re.IGNORECASE)


def test_the_readmes_study_is_valid(caplog: pytest.LogCaptureFixture) -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.split("## A study\n")[1].split("\n\nAny key")[0]
    document = tomllib.loads(re.sub(r"^    ", "", block, flags=re.MULTILINE))
    assert parse_definition(document, source="README.md").num_points == 4 * 5 * 2
    assert caplog.messages == []


def test_every_linked_file_of_the_documents_is_there() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_package_and_the_project_have_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == hpsearch.__version__


def test_the_example_of_the_search_document_is_a_program_that_works() -> None:
    block = re.search(r"^    import optuna\n(?:    .*\n|\n)+", (ROOT / "docs" / "search.md").read_text(), re.MULTILINE)
    assert block
    names: dict[str, Any] = {}
    exec(compile(textwrap.dedent(block[0]), "search.md", "exec"), names)
    study = names["study"]
    assert study.best_params["rate"] == pytest.approx(0.03, rel=0.3)
    assert len(study.trials) < 40  # it ended by itself


def test_the_answers_about_the_code_name_files_and_names_that_exist() -> None:
    """Each name of an answer stands in one of the files that the answer names."""
    questions, answers = (ROOT / "docs" / "questions.md").read_text().split("## Answers")
    numbered = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", answers, flags=re.MULTILINE | re.DOTALL)
    assert [number for number, _ in numbered] == re.findall(r"^(\d+)\. ", questions, flags=re.MULTILINE)
    for number, answer in numbered:
        words = re.findall(r"`([^`]+)`", answer)
        files = [word for word in words if re.search(r"[./]", word) and not word.endswith("/")]
        found = {
            file: next((p for p in (ROOT / "hpsearch" / file, ROOT / file) if p.is_file()), None) for file in files
        }
        assert None not in found.values(), f"answer {number}: {found}"
        texts = [path.read_text() for path in found.values() if path is not None]
        names = [word for word in words if word not in files and re.fullmatch(r"\w{3,}", word)]
        assert not [name for name in names if not any(name in text for text in texts)], f"answer {number}"
