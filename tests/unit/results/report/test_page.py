"""The report's page: whole, self-contained, and harmless whatever a study's trials say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import TrialState

from hpsearch.errors import NothingCompleteError
from hpsearch.results.report import page as page_module
from hpsearch.results.report.page import SECTIONS, render_report
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary

FOLDER = Path(page_module.__file__).parent / "templates"
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"&{{ 7 * 7 }}"


class Page(HTMLParser):
    """The elements and the text of a document, scripts and styles left out."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str | None, str] = {}
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        if tag not in ("strong", "span", "code"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[self.elements[-1][1].get("id")] = data
        elif self._open != "style":
            self.text += data


@pytest.fixture
def hostile(make_summary: Any, make_trial: Any) -> StudySummary:
    """A study whose names can hold nothing, but whose attributes and data set can."""
    said = {"stop_detail": HOSTILE, "stop_reason": HOSTILE, "device": HOSTILE, "worker": HOSTILE}
    trials = [
        make_trial(0, 0.1, {"activation": "tanh", "hidden_units": 50}, **said),
        make_trial(1, 0.2, {"activation": "relu", "hidden_units": 100}, **said),
        make_trial(2, None, state=TrialState.FAIL, is_current=False, fail_reason=HOSTILE),
    ]
    search = {"activation": ["tanh", "relu"], "hidden_units": [50, 100]}
    summary: StudySummary = make_summary(trials, search, data={"dataset": HOSTILE})
    # Choice values are checked by their sections today; a report must not depend on that.
    trials[0].parameters["activation"] = HOSTILE
    for trial in trials[:2]:
        trial.stored_distributions["activation"] = distribution_to_json(CategoricalDistribution((HOSTILE, "relu")))
    return summary


def test_hostile_text_is_shown_as_it_stands_and_makes_no_element(hostile: StudySummary, summary: StudySummary) -> None:
    page, harmless = (
        Page(render_report(StudyStatus(summary=hostile))),
        Page(render_report(StudyStatus(summary=summary))),
    )
    # 3 times the best point's activation; data set; detail, device and worker; 2 + 1 reasons.
    assert page.text.count(HOSTILE) == 10
    kinds = {tag for tag, _ in harmless.elements}
    assert {tag for tag, _ in page.elements} == kinds
    assert "img" not in kinds
    assert len(page.scripts) == len(harmless.scripts) == 2


def test_hostile_text_is_escaped_in_plots_and_cannot_end_their_script(hostile: StudySummary) -> None:
    page = Page(render_report(StudyStatus(summary=hostile)))
    plots = json.loads(page.scripts["plots"])
    hover_texts = [trace["meta"] for trace in plots["curves"]["data"]]
    assert any("&lt;script&gt;alert" in text for text in hover_texts)
    assert "<" not in page.scripts["plots"]


def test_the_page_asks_the_network_for_nothing(summary: StudySummary) -> None:
    page = Page(render_report(StudyStatus(summary=summary)))
    assert not [tag for tag, attributes in page.elements if {"src", "href", "action"} & attributes.keys()]
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    nonces = {attributes["nonce"] for tag, attributes in page.elements if tag == "script"}
    assert nonces == set(re.findall(r"'nonce-([\w-]{16,})'", policy))


def test_plotly_is_in_the_page_once(summary: StudySummary) -> None:
    assert render_report(StudyStatus(summary=summary)).count("Licensed under the MIT license\n*/") == 1


def test_the_page_tells_counts_best_point_and_evidence(summary: StudySummary) -> None:
    text = " ".join(Page(render_report(StudyStatus(summary=summary))).text.split())
    assert "Validation error in the search 2.00 %: trial 1, learning_rate 0.01." in text
    assert "3 in all 2 complete 1 pruned Epochs trained 6 Data set mnist" in text
    assert "not finished" not in text
    assert "failed" not in text
    assert summary.study.definition.sha256 in text
    assert "ba89" * 16 in text
    assert 'name = "by-hand"' in text


def test_an_unfinished_study_says_so(make_summary: Any, make_trial: Any) -> None:
    trials = [make_trial(0, 0.1), make_trial(1, None, state=TrialState.WAITING)]
    text = " ".join(Page(render_report(StudyStatus(summary=make_summary(trials)))).text.split())
    assert "The search was not finished when this report was written. Points still waiting: 1, running: 0." in text


def test_the_ranking_holds_the_best_twenty_and_says_how_many_there_are(make_summary: Any, make_trial: Any) -> None:
    trials = [make_trial(i, 0.1 + i / 100) for i in range(25)]
    html = render_report(StudyStatus(summary=make_summary(trials)))
    ranking = html[html.index('class="ranking"') :]
    assert ranking[: ranking.index("</table>")].count("<tr") == 1 + 20
    assert "The best 20 of 25 complete trials." in html


def test_a_given_up_point_is_told_from_one_that_was_taken_up_again(make_summary: Any, make_trial: Any) -> None:
    trials = [
        make_trial(0, 0.1),
        make_trial(1, None, state=TrialState.FAIL, is_current=False, fail_reason="its worker died"),
        make_trial(2, None, state=TrialState.FAIL, fail_reason="its worker failed"),
    ]
    text = " ".join(Page(render_report(StudyStatus(summary=make_summary(trials)))).text.split())
    assert "1 1 0 its worker died taken up again 2 2 0 its worker failed given up" in text
    assert "1 given up" in text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3.21, "3.2 s"), (250.0, "4 min 10 s"), (7500.0, "2 h 5 min"), (59.99, "1 min 0 s")],
)
def test_times_read_well(make_summary: Any, make_trial: Any, seconds: float, shown: str) -> None:
    html = render_report(StudyStatus(summary=make_summary([make_trial(0, 0.1, seconds=seconds)])))
    assert f"<td>{shown}</td>" in html


def test_nothing_complete_is_an_error_with_the_counts(make_summary: Any, make_trial: Any) -> None:
    with pytest.raises(NothingCompleteError, match="1 waiting, 0 running, 0 complete"):
        render_report(StudyStatus(summary=make_summary([make_trial(0, None, state=TrialState.WAITING)])))


def test_every_section_has_a_template_or_a_plot_and_every_template_a_section() -> None:
    templates = {path.name.partition(".")[0] for path in (FOLDER / "sections").glob("*.html.j2")}
    assert templates <= {section.name for section in SECTIONS}
    assert {section.name for section in SECTIONS if section.draw is None} <= templates


def test_nothing_in_style_and_script_is_taken_for_a_template() -> None:
    for path in (*FOLDER.rglob("*.css"), *FOLDER.rglob("*.js")):
        assert not re.search(r"\{[{%#]", path.read_text()), path
