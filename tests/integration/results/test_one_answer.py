"""All views give one answer: which point a study has chosen, and the number about it, in every state of a study."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import hpsearch
from hpsearch.results.selection import Selection
from tests.acceptance.in_process import hpsearch_here
from tests.integration.results.vault_studies import Search, Searched, confirm

# The state of the confirmation, and the points that the test set has been opened for.
STATES = [
    *((state, tested) for state in ("none", "unfinished", "could not choose") for tested in ((), ("best",))),
    *(
        (state, tested)
        for state in ("same point", "other point")
        for tested in ((), ("best",), ("confirmed",), ("best", "confirmed"))
    ),
]


@dataclass(frozen=True, kw_only=True)
class Views:
    """What each view says about a study, as (study, trial) or (evidence, error, interval)."""

    searched: Searched
    url: str
    folder: Path

    def run(self, *arguments: str) -> str:
        place = ["--storage", self.url]
        if arguments[0] in ("export", "test"):
            place += ["--artifacts", self.searched.artifacts.place]
        home = {"HPSEARCH_HOME": str(self.folder / "home"), "NO_COLOR": "1"}
        done = hpsearch_here(arguments[0], "searched", *arguments[1:], *place, folder=self.folder, environment=home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self) -> hpsearch.Study:
        return hpsearch.load("searched", self.url, artifacts=self.searched.artifacts.place)

    def points(self) -> dict[str, tuple[str, int]]:
        status = json.loads(self.run("status", "--json"))["chosen"]
        exported = json.loads(self.run("export"))
        model = self.folder / "model.safetensors"
        self.run("export", "--model", str(model))
        study = self.python()
        study.export(self.folder / "api.json")
        of_api = json.loads((self.folder / "api.json").read_text())
        study.export(self.folder / "api.safetensors")
        shown = re.search(r"trial (\d+) of (\S+), (?:confirmed|the best)", self.run("status"))
        assert shown
        page = re.search(r"Chosen as</th><td>(.*?)trial (\d+)(?: of (\S+))?</td>", self.page())
        assert page
        return {
            "status --json": (status["study"], status["trial"]),
            "status": (shown[2], int(shown[1])),
            "export": (exported["study"], exported["trial"]),
            "export --model": model_of(model),
            "report": (page[3] or "searched", int(page[2])),
            "Study.chosen": (study.chosen.study.name, study.chosen.trial.number),
            "Study.export": (of_api["study"], of_api["trial"]),
            "Study.export, model": model_of(self.folder / "api.safetensors"),
        }

    def page(self) -> str:
        self.run("report", "-o", str(self.folder / "report.html"))
        return html.unescape((self.folder / "report.html").read_text())


def model_of(path: Path) -> tuple[str, int]:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    return metadata["study"], int(metadata["trial"])


@pytest.fixture
def make_views(search: Search, folder: Path, tables_url: str, tmp_path: Path) -> Callable[[str], Views]:
    """A study whose confirmation is in this state."""

    def make(confirmation: str) -> Views:
        searched = search(str(folder))
        match confirmation:
            case "unfinished":
                confirm(searched, complete=1)
            case "same point":
                confirm(searched, seeds=SEEDS_FOR_SAME)
            case "other point":
                confirm(searched, seeds=tuple(reversed(SEEDS_FOR_SAME)))
            case "could not choose":
                companion = confirm(searched, complete=2)
                with searched.database.engine.begin() as connection:
                    connection.exec_driver_sql("DELETE FROM hpsearch_correctness WHERE trial_id > 2")
                assert companion.name == "searched-confirm"
        return Views(searched=searched, url=tables_url, folder=tmp_path)

    return make


SEEDS_FOR_SAME = (14, 7)  # 70 % errors for the search's best point, 100 % for the other one


# The states in which most has happened; the others in `make test-slow`.
FULL = [
    ("none", ()),
    ("unfinished", ("best",)),
    ("same point", ("best", "confirmed")),
    ("other point", ("best", "confirmed")),
]


@pytest.mark.parametrize(
    ("confirmation", "tested"),
    [state if state in FULL else pytest.param(*state, marks=pytest.mark.slow) for state in STATES],
)
def test_every_view_tells_the_same_point_and_the_test_takes_it(
    make_views: Callable[[str], Views], confirmation: str, tested: tuple[str, ...]
) -> None:
    views = make_views(confirmation)
    is_confirmed = confirmation in ("same point", "other point")
    for number, point in enumerate(tested):
        views.searched.open(selection=Selection(point), reason="to compare" if number else None)
    chosen = ("searched-confirm" if is_confirmed else "searched", {"other point": 1}.get(confirmation, 0))
    assert set(views.points().values()) == {chosen}
    told = json.loads(views.run("test", "--json", *(["--again", "one answer"] if tested else [])))
    assert (told["chosen"]["study"], told["chosen"]["trial"]) == chosen
    assert told["is_of_chosen_point"]
    assert set(views.points().values()) == {chosen}


@pytest.mark.parametrize(("confirmation", "tested"), [state for state in STATES if state[0] in ("none", "other point")])
def test_the_first_number_is_the_most_honest_one_about_the_chosen_point(
    make_views: Callable[[str], Views], confirmation: str, tested: tuple[str, ...]
) -> None:
    """Of the test set if it was opened for this very model, else over fresh seeds, else of the search."""
    views = make_views(confirmation)
    records = {}
    for number, point in enumerate(tested):
        records[point] = views.searched.open(selection=Selection(point), reason="to compare" if number else None)
    status = json.loads(views.run("status", "--json"))
    estimate = status["chosen"]["estimate"]
    record = records.get("best" if confirmation == "none" else "confirmed")
    if record is not None:
        expected = ("test", record.test_error, list(record.interval))
    elif confirmation == "none":
        expected = ("search", status["best"]["value"], estimate["interval"])
        assert estimate["num_images"] == 20
        low, high = estimate["interval"]
        assert low < status["best"]["value"] < high
    else:
        of_seeds = status["confirmation"]["configurations"][status["confirmation"]["chosen"]["configuration"]]
        expected = ("confirmed", of_seeds["mean"], of_seeds["interval"])
    assert (estimate["evidence"], estimate["error"], estimate["interval"]) == expected

    exported = json.loads(views.run("export"))
    assert exported["estimate"] == estimate
    ours, others = exported["test_openings"], exported["other_test_openings"]
    chosen = (exported["study"], exported["trial"])
    assert [(each["chosen"]["study"], each["chosen"]["trial"]) for each in ours] == [chosen] * len(ours)
    assert chosen not in [(each["chosen"]["study"], each["chosen"]["trial"]) for each in others]
    assert len(ours) + len(others) == len(records)

    lead = re.search(r'<p class="lead">(.*?)</p>', views.page(), re.DOTALL)
    assert lead
    said = " ".join(re.sub(r"<[^>]*>", "", lead[1]).split())
    name = {"test": "Test error", "confirmed": "Confirmed validation error", "search": "Validation error in the search"}
    low, high = (f"{100 * bound:.2f}" for bound in expected[2])
    assert said.startswith(f"{name[expected[0]]} {100 * expected[1]:.2f} % (95 % interval {low} to {high} %):")
    for view in (views.run("status"), " ".join(views.page().split())):
        is_named = "was opened for another point than the chosen one, trial 0 of searched (best): test error" in view
        assert is_named == (confirmation == "other point" and "best" in records)


def test_the_other_point_is_there_for_those_who_ask(make_views: Callable[[str], Views]) -> None:
    """And then no file of it holds a number of the confirmed one."""
    views = make_views("other point")
    views.searched.open()
    exported = json.loads(views.run("export", "--point", "best"))
    assert (exported["study"], exported["trial"], exported["selection"]) == ("searched", 0, "best")
    assert exported["estimate"]["evidence"] == "search"
    assert exported["test_openings"] == []
    assert len(exported["other_test_openings"]) == 1
    confirmed = json.loads(views.run("export", "--point", "confirmed"))
    assert confirmed["estimate"]["evidence"] == "test"
    study = views.python()
    assert study.best.number == 0
    best, chosen = study.best_parameters("best"), study.best_parameters()
    assert any((best[name] != chosen[name]).any() for name in best)
    assert "the search's best is another point: trial 0" in views.run("status")


def test_an_unfinished_confirmation_changes_nothing_but_a_line(make_views: Callable[[str], Views]) -> None:
    views = make_views("none")
    before = views.points(), json.loads(views.run("status", "--json"))["chosen"]
    confirm(views.searched, complete=1)
    assert (views.points(), json.loads(views.run("status", "--json"))["chosen"]) == before
    assert "its confirmation searched-confirm is not finished: 1 waiting" in views.run("status")
    assert "The confirmation searched-confirm is not finished" in views.page()


def test_a_point_without_a_record_of_its_images_has_a_number_and_no_interval(
    make_views: Callable[[str], Views], execute: Any
) -> None:
    views = make_views("none")
    execute("DELETE FROM hpsearch_correctness")
    estimate = json.loads(views.run("status", "--json"))["chosen"]["estimate"]
    assert (estimate["evidence"], estimate["interval"], estimate["num_images"]) == ("search", None, None)
    assert "Validation error in the search" in views.page()
