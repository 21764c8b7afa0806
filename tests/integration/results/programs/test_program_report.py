"""The HTML report of a study of programs."""

from __future__ import annotations

import re

from hpsearch.results.report.page import render_report
from hpsearch.worker.rounds import advance
from tests.integration.results.programs.conftest import MadeUpPrograms, ProgramsMaker


def titles(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_it_has_the_sections_that_a_program_can_have(trained: MadeUpPrograms) -> None:
    assert titles(render_report(trained.status)) == [
        "Chosen point",
        "Search map",
        "Learning curves",
        "Search history",
        "Parameter importance",
        "Best trials of the search",
        "Failed attempts",
        "Definition, data and versions",
    ]


def test_it_shows_the_command_with_and_without_the_values(trained: MadeUpPrograms) -> None:
    html = render_report(trained.status)
    assert "Command: <code>{python} train.py --lr={lr} --seed={seed}</code>" in html
    assert "<pre>python train.py --lr=0.01 --seed=0</pre>" in html


def test_it_speaks_of_steps_and_the_own_metric(trained: MadeUpPrograms) -> None:
    page = render_report(trained.status).partition('<script type="application/json"')[0]
    assert "<dt>Steps reported</dt><dd>4</dd>" in page
    assert "<dd>val_loss, minimize</dd>" in page
    for word in ("NLL", "epoch", "images", "mnist", "validation"):
        assert word not in page.partition("<body>")[2], word


def test_it_shows_the_last_lines_of_failures_escaped(trained: MadeUpPrograms) -> None:
    html = render_report(trained.status)
    assert "<pre>loading data\nError: &lt;script&gt;alert(1)&lt;/script&gt;</pre>" in html
    assert "alert(1)</script>" not in html


def test_it_shows_further_reported_values(trained: MadeUpPrograms) -> None:
    assert "<code>train_loss</code></th><td>0.125</td>" in render_report(trained.status)


def test_rounds_say_that_every_difference_counted(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"strategy": "coarse-to-fine", "lr": {"log10": [-1, -3]}})
    for _ in range(2):
        programs.complete_all(lambda point: abs(point["lr"] - 0.01))
        advance(programs.database, programs.study.study_id)
    assert "(without results per example, every difference counts)" in render_report(programs.status)
