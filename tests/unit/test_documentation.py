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
from hpsearch.data.registry import FORMS
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import CommandSettings, ObjectiveSettings
from hpsearch.study.settings import (
    DataSettings,
    ModelSettings,
    PruningSettings,
    Settings,
    StoppingSettings,
    TrainingSettings,
)
from hpsearch.study.space import SearchSettings
from hpsearch.study.study_file import load_definition, parse_definition

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "search": SearchSettings,
    "stopping": StoppingSettings,
    "pruning": PruningSettings,
}

PROGRAMS = ("command", "objective")


def documented_keys(heading: str) -> dict[str, str]:
    """key -> default, from the table under the heading."""
    text = (ROOT / "docs" / "study-file.md").read_text()
    body = re.split(r"^## ", text.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", body, flags=re.MULTILINE))


def defaults_of(settings: Settings) -> dict[str, Any]:
    """key -> default of every key, also of those of `JOINED_LATER`, which a dump leaves out."""
    dumped = settings.model_dump(mode="json")
    return {key: dumped.get(key, field.get_default()) for key, field in type(settings).model_fields.items()}


def assert_documented(heading: str, defaults: dict[str, Any]) -> None:
    documented = documented_keys(heading)
    assert list(documented) == list(defaults)
    for key, default in defaults.items():
        if default is not None:
            assert json.loads(documented[key].split(";")[0]) == default, key


@pytest.mark.parametrize("section", SECTIONS)
def test_the_study_file_document_lists_every_key_with_its_default(section: str) -> None:
    defaults = defaults_of(SECTIONS[section]())
    defaults.pop("dimensions", None)  # all other keys of [search]
    assert set(defaults) >= SECTIONS[section].JOINED_LATER
    assert_documented(f"[{section}]", defaults)


def test_the_study_file_document_lists_every_key_above_the_sections() -> None:
    defaults = defaults_of(StudyDefinition(name="a"))
    assert_documented(
        "Top level", {k: v for k, v in defaults.items() if k not in (*SECTIONS, *PROGRAMS)} | {"name": None}
    )
    assert set(SECTIONS) <= set(defaults)


def test_the_study_file_document_lists_every_key_of_a_program() -> None:
    """`run` and `function` have no default; an objective's other keys are those of a command."""
    command = defaults_of(CommandSettings(run=("train",)))
    own = ("run", "pattern", "reads_parameters")
    assert_documented("[command]", {**dict.fromkeys(own, None), **command, "run": None})
    (key,) = set(defaults_of(ObjectiveSettings(function="a:b"))) - set(command)
    assert_documented("[objective]", {key: None})


def test_each_key_of_a_kind_of_data_links_to_the_page_that_explains_it() -> None:
    text = (ROOT / "docs" / "study-file.md").read_text()
    for key in DataSettings.JOINED_LATER:
        pages = re.findall(rf"^\| `{key}` \|.*", text, re.MULTILINE)[0]
        linked = re.findall(r"\]\((data[\w-]*\.md)[#)]", pages)
        assert any(f"`{key}" in (ROOT / "docs" / page).read_text() for page in linked), key


def test_the_data_document_links_to_the_page_of_each_form() -> None:
    docs = ROOT / "docs"
    forms = (docs / "data.md").read_text().split("## Where a path")[0]
    for page in docs.glob("data-*.md"):
        assert f"]({page.name}" in forms
    for form in FORMS:
        for ending in form.endings:
            assert ending.removesuffix(".gz").removeprefix(".") in forms.lower(), f"no form with {ending}"


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("studies/**/*.toml"), *ROOT.glob("examples/**/*.toml")]), ids=lambda path: path.stem
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


def test_every_linked_heading_of_the_documents_is_there() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
            text = (document.parent / target).read_text() if target else document.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}
            assert heading in known, f"{document.name} links to {target}#{heading}"


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
