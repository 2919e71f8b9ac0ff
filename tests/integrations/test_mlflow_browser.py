"""MLflow's pages of a sweep in Chromium: the format of saved views is not documented."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from ganray.integrations.mlflow_sweep import MEAN_TAG, sync_sweep
from ganray.integrations.mlflow_view import save_views
from ganray.sweeps import results
from ganray.sweeps.analysis import ranking
from tests.integrations.servers import free_port, serve
from tests.integrations.small_sweep import DATASET, base_config, run_trial, small_sweep

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TIMEOUT_MS = 60_000
SHOTS = os.environ.get("GANRAY_SHOTS")
"""Folder for screenshots."""


@dataclass(frozen=True)
class Sweep:
    """A sweep on a running server."""

    urls: dict[str, str]
    """URLs of its pages by their titles without the sweep's name."""
    labels: list[str]
    """Labels of the trials."""
    comparison: str
    """URL of MLflow's own comparison of the settings' means."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, empty_store):
    home = tmp_path_factory.mktemp("browser")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        plan, base = small_sweep(), base_config(home)
        with sync_sweep(plan, base, lambda _: DATASET, {}) as runs:
            for trial in plan.trials:
                config = trial.config(base)
                runs.begin(trial, config)
                runs.end(trial, run_trial(config, trial))
            runs.log_means(ranking(results.collect(plan, home / "runs")))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", runs.parent.uri, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with serve(command, f"{url}/health", home / "server.log", **quiet):
        urls = save_views(runs.parent, plan, url, has_means=True)
        urls = {title.removeprefix("latents "): page for title, page in urls.items()}
        yield Sweep(urls, [trial.label for trial in plan.trials], _compare_url(runs.parent, url))


def _compare_url(parent, url):
    means = f"tags.`{MEAN_TAG}` = 'latents'"
    found = parent.client().search_runs([parent.experiment_id], means)
    ids = quote(json.dumps([run.info.run_id for run in found]))
    experiments = quote(json.dumps([parent.experiment_id]))
    return f"{url}/#/compare-runs?runs={ids}&experiments={experiments}"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install -e .[browser]")
    if CHROMIUM is None:
        pytest.skip("no chromium in PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, request):
    """Open a URL and wait for a text; take a screenshot at the end of the test."""
    page = browser.new_page(viewport={"width": 1600, "height": 3800})
    page.set_default_timeout(TIMEOUT_MS)

    def open_url(url, text, close_assistant=True):
        page.goto(url)
        page.get_by_text(text).first.wait_for()
        assistant = page.get_by_role("button", name="Close", exact=True)
        if assistant.count() and close_assistant:
            assistant.last.click()  # it takes a third of the width of a new browser's first page
        return page

    yield open_url
    if SHOTS:
        page.wait_for_timeout(3000)
        name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-")
        page.screenshot(path=Path(SHOTS) / f"{name}.png")
    page.close()


def card(page, title):
    """Return the chart with this title."""
    heading = page.get_by_text(title, exact=True)
    heading.first.wait_for()
    holder = page.locator("[data-testid='experiment-view-compare-runs-card']")
    return holder.filter(has=heading).first


def assert_no_chart_is_missing(page):
    assert page.get_by_text("No charts in this section").count() == 0
    assert page.get_by_text("No images found").count() == 0
    assert page.get_by_text("Something went wrong").count() == 0


@pytest.mark.parametrize(
    ("title", "legends"),
    [
        ("by distribution", ["normal", "uniform"]),
        ("by size", ["1", "64"]),
        ("by setting", ["normal / 1", "uniform / 64"]),
    ],
)
def test_averages_are_drawn_for_each_level_and_each_setting(sweep, open_page, title, legends):
    page = open_page(sweep.urls[title], "Variety while training")
    for metric in ("collapse/coverage", "collapse/recall", "loss/D", "final/coverage"):
        card(page, metric).locator("svg.main-svg").first.wait_for()
    for legend in legends:
        card(page, "collapse/coverage").get_by_text(f"{legend} (").first.wait_for()
    assert_no_chart_is_missing(page)


def test_every_run_is_drawn_with_its_settings_and_its_samples(sweep, open_page):
    page = open_page(sweep.urls["every run"], "Variety while training")
    for label in sweep.labels:
        page.get_by_text(label, exact=True).first.wait_for()
    assert page.get_by_text("latents", exact=True).count() == 0  # the parent
    page.get_by_text("12 matching runs").wait_for()
    for metric in ("collapse/kl_corrected", "loss/G", "final/recall vs. final/coverage"):
        card(page, metric).locator("svg.main-svg").first.wait_for()
    settings = card(page, "Parallel Coordinates")
    settings.locator("canvas").first.wait_for()
    names = settings.locator(".parcoords text.label").all_text_contents()
    assert names[1:3] == ["latent.size", "final/coverage"]
    card(page, "samples").locator("img").first.wait_for()
    card(page, "Runs").wait_for()
    assert_no_chart_is_missing(page)


def test_samples_of_one_run_per_setting_are_side_by_side(sweep, open_page):
    page = open_page(sweep.urls["samples of seed 0"], "Samples")
    page.get_by_text("4 matching runs").wait_for()
    images = card(page, "samples").locator("img")
    images.nth(3).wait_for()
    assert images.count() == 4
    assert page.get_by_text("No image logged at this step").count() == 0
    assert_no_chart_is_missing(page)


@pytest.mark.parametrize("title", ["by distribution", "by setting", "every run"])
def test_titles_are_not_cut_beside_the_assistant_on_a_laptop(sweep, open_page, title):
    page = open_page(sweep.urls[title], "Variety while training", close_assistant=False)
    page.get_by_text("MLflow Assistant").first.wait_for()
    page.set_viewport_size({"width": 1440, "height": 3800})
    card(page, "loss/G").locator("svg.main-svg").first.wait_for()
    page.wait_for_function(
        """() => [...document.querySelectorAll("h4")]
            .filter(title => title.textContent != "Runs")  // its switches leave it no room
            .every(title => title.scrollWidth <= title.clientWidth)"""
    )


def test_mlflows_own_comparison_of_the_settings_begins_with_coverage(sweep, open_page):
    page = open_page(sweep.comparison, "Comparing 4 Runs from 1 Experiment")
    page.locator("svg.main-svg .axis-title").nth(2).wait_for()
    names = page.locator("svg.main-svg .axis-title").all_text_contents()
    assert names == ["latent.distribution", "latent.size", "collapse/coverage"]


def test_the_views_are_in_the_pages_own_list(sweep, open_page):
    page = open_page(sweep.urls["by distribution"], "Variety while training")
    page.get_by_role("button", name="latents by distribution").click()
    for title in sweep.urls:
        page.get_by_text(f"latents {title}", exact=True).last.wait_for()
