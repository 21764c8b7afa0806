"""How planted faults are judged, and how the page is filled."""

from __future__ import annotations

from pathlib import Path

from benchmarks.planted_faults import FAULTS, definition_of, fill_document, healthy_set_ups, is_named
from hpsearch.checks.finding import Finding, Verdict

PAGE = (
    "# Title\n<!-- faults -->\nold\n<!-- end of faults -->\nbetween\n<!-- healthy -->\n<!-- end of healthy -->\nend\n"
)


def finding(*causes: str) -> Finding:
    return Finding(check="c", subject="s", verdict=Verdict.FAILED, found="found nothing", look_at=causes)


def test_a_cause_counts_if_it_is_among_the_first_two() -> None:
    assert is_named("softmax", [finding("a", "Softmax twice", "b")])
    assert is_named("softmax", [finding("a"), finding("softmax")])
    assert not is_named("softmax", [finding("a", "b"), finding("softmax")])
    assert is_named("nothing", [finding()])  # without causes, what was found


def test_every_set_up_is_a_study_and_has_a_name_of_its_own() -> None:
    set_ups = [*FAULTS, *healthy_set_ups()]
    assert len({set_up.name for set_up in set_ups}) == len(set_ups)
    assert len(FAULTS) >= 20
    for set_up in set_ups:
        assert definition_of(set_up.settings).num_points == 2


def test_the_page_tells_the_stored_result(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    told = {"check": "order", "verdict": "warning", "found": "sorted", "look_at": ["a cause", "another", "a third"]}
    faults = [
        {"name": "one", "findings": [told], "is_named": True},
        {"name": "two", "findings": [], "is_named": False},
    ]
    fill_document(page, {"faults": faults, "healthy": [{"name": "well", "findings": [told]}]})
    text = page.read_text()
    assert "2 faults: 1 noticed, 1 with the cause" in text
    assert "| one | order warning | a cause; another | yes | yes |" in text
    assert "| two | - | - | **no** | **no** |" in text
    assert "1 healthy set-ups: 0 failures, 1 warnings." in text
    assert "- well: order: sorted" in text
    assert "\nold\n" not in text
    assert "between" in text
