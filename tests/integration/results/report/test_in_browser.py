"""The report in a real browser: every plot is drawn, nothing is fetched, and hostile text stays text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from hpsearch.results.report.page import write_report
from hpsearch.store.connection.database import Database
from tests.integration.picture_studies import PictureBench
from tests.integration.results.vault_studies import TRAIN, images_of, write_part

pytestmark = pytest.mark.browser

HOSTILE = "<script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
GRID = {
    "learning_rate": {"log10": [-1, -2]},
    "lambda_1": {"log10": [-3, -4], "zero": True},
    "activation": ["tanh", "relu"],
}
DRAWN = {
    "strategy": "random",
    "num_points": 6,
    "learning_rate": {"low": 1e-4, "high": 0.5, "log": True},
    "lambda_1": {"log10": [-3, -4], "zero": True},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without one these tests are skipped, or fail where HPSEARCH_REQUIRE_BROWSER is 1."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        reason = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("HPSEARCH_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root or in most containers; the page is our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what happened in it that should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def open_report(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Write a study's report and open the file."""
    context = browser.new_context()
    context.set_default_timeout(120_000)  # milliseconds, for a busy machine

    def open_it(study: Any, width: int = 1200) -> Opened:
        path = tmp_path / "report.html"
        place = getattr(study, "artifacts", None)
        write_report(study.database, study.name, path, artifacts=place and place.place)
        opened = Opened(page=context.new_page())
        opened.page.set_viewport_size({"width": width, "height": 900})
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(path.as_uri())
        return opened

    yield open_it
    context.close()


def _train(study: Any, num_points: int, **attributes: Any) -> None:
    """Complete all points but the last two, which are pruned and still running."""
    for i in range(num_points - 2):
        study.complete(study.claim(), [0.9, 0.5, 0.02 + i / 100], **attributes)
    study.prune(study.claim(), [0.9])
    study.train(study.claim(), [0.9, 0.4])


@pytest.mark.parametrize("search", [GRID, DRAWN], ids=["grid", "drawn"])
def test_every_plot_is_drawn_without_a_complaint_and_without_the_network(
    make_study: Callable[..., Any], open_report: Callable[..., Opened], search: dict[str, Any]
) -> None:
    study = make_study(search)
    _train(study, study.study.definition.num_points)
    opened = open_report(study)
    plots = opened.page.locator("[data-plot]")
    names = [plot.get_attribute("data-plot") for plot in plots.all()]
    assert names == ["map", "curves", "losses", "history", "importance"]
    for name in names:
        drawn = opened.page.locator(f"[data-plot={name}].js-plotly-plot svg.main-svg").first
        drawn.wait_for(state="visible", timeout=120_000)
    assert opened.complaints == []
    assert all(url.startswith(("file://", "data:", "blob:")) for url in opened.requests)
    assert len([url for url in opened.requests if url.startswith("file://")]) == 1


def test_hostile_text_stays_text(make_study: Callable[..., Any], open_report: Callable[..., Opened]) -> None:
    study = make_study({"hidden_units": [50, 100, 200]}, data={"dataset": HOSTILE})
    study.claim()
    study.ledger.release(HOSTILE)
    _train(study, 3, stop_detail=HOSTILE, stop_reason=HOSTILE, device=HOSTILE, worker=HOSTILE)
    opened = open_report(study)
    opened.page.locator("[data-plot=map].js-plotly-plot svg.main-svg").first.wait_for(state="visible")
    assert opened.page.locator("main").inner_text().count(HOSTILE) == 6
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []
    assert len(opened.requests) == 1


def test_a_curve_tells_its_parameters_when_it_is_pointed_at(
    make_study: Callable[..., Any], open_report: Callable[..., Opened]
) -> None:
    study = make_study({"hidden_units": [50]})
    study.complete(study.claim(), [0.5, 0.5, 0.5])
    page = open_report(study).page
    plot = page.locator("[data-plot=curves]")
    plot.scroll_into_view_if_needed()
    # The middle epoch of a single flat curve lies in the middle of the plot.
    plot.locator(".nsewdrag").hover()
    hover = plot.locator(".hoverlayer .hovertext")
    hover.wait_for(state="visible", timeout=120_000)
    assert "trial 0, epoch 2: 50.00 %" in hover.text_content()
    assert "hidden_units 50" in hover.text_content()


def test_the_pictures_are_images_that_the_browser_can_read(
    database: Database, open_report: Callable[..., Opened], tmp_path: Path
) -> None:
    """Filters at three moments, and misclassified images, inside the page; also in a narrow window."""
    bench = PictureBench(database, tmp_path)
    write_part(tmp_path, TRAIN, *images_of(300, 1))
    bench.train(bench.prepare(data={"dataset": str(tmp_path)}, training={"batch_size": 25, "max_epochs": 5}))
    opened = open_report(bench, width=390)
    images = opened.page.locator("section img")
    size = "one.decode().then(() => [one.naturalWidth, one.naturalHeight])"
    sizes = images.evaluate_all(f"all => Promise.all(all.map(one => {size}))")
    assert opened.complaints == []
    filters = 3 * 13 + 1  # eight filters in a square of three by three, with a line between them
    assert sizes[:3] == [[filters, filters]] * 3
    assert sizes[-1] == [12, 12]
    assert opened.page.locator("table.confusion tbody tr").count() == 10
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_fits_a_narrow_window(make_study: Callable[..., Any], open_report: Callable[..., Opened]) -> None:
    study = make_study({"learning_rate": {"log10": [-1, -3]}})
    _train(study, 3)
    page = open_report(study, width=390).page
    page.locator("[data-plot=history] svg.main-svg").first.wait_for(state="visible", timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
