"""MLflow's pages on a study, as Chromium shows them: the views' format is MLflow's own secret."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ganray.integrations.mlflow_sweep import SweepRuns
from ganray.integrations.mlflow_view import View, compare_url, save_views, view_url
from tests.integrations.small_study import DATASET, base_config, run_trial, small_study

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
"""Folder for screenshots, to be looked at."""


@dataclass(frozen=True)
class Shown:
    """A study on a running server."""

    url: str
    experiment_id: str
    views: dict[str, View]
    """By their titles without the study's name."""
    run_ids: list[str]
    labels: list[str]
    """Of the trials."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory, empty_store):
    home = tmp_path_factory.mktemp("shown")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        study, base = small_study(), base_config(home)
        runs = SweepRuns(study, base, lambda _: DATASET, {})
    for trial in study.trials:
        config = trial.config(base)
        runs.begin(trial, config)
        runs.end(trial, run_trial(config, trial))
    runs.close("FINISHED")
    views = {v.title.removeprefix("latents "): v for v in save_views(runs.parent, study)}
    experiment_id = runs.parent.experiment_id
    children = MlflowClient(runs.parent.uri).search_runs(
        [experiment_id], "tags.`ganray.sweep` = 'latents'"
    )
    ids, labels = [run.info.run_id for run in children], [trial.label for trial in study.trials]
    assert len(ids) == len(labels) == 12
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", runs.parent.uri, "--host", "127.0.0.1", "--port", str(port)]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, cwd=home)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/health")
        yield Shown(f"http://127.0.0.1:{port}", experiment_id, views, ids, labels)
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(server, url):
    for _ in range(240):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


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
    """Opens an address and waits until a text is there; at the end comes the screenshot."""
    page = browser.new_page(viewport={"width": 1600, "height": 2900})
    page.set_default_timeout(TIMEOUT_MS)

    def opened(url, text):
        page.goto(url)
        page.get_by_text(text).first.wait_for()
        assistant = page.get_by_role("button", name="Close", exact=True)
        if assistant.count():  # it takes a third of the width of a new browser's first page
            assistant.last.click()
        return page

    yield opened
    if SHOTS:
        page.wait_for_timeout(3000)
        name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-")
        page.screenshot(path=Path(SHOTS) / f"{name}.png")
    page.close()


def view(shown, words):
    return view_url(shown.url, shown.experiment_id, shown.views[words].key)


def card(page, title):
    """A chart with this title, drawn."""
    heading = page.get_by_text(title, exact=True)
    heading.first.wait_for()
    holder = page.locator("[data-testid='experiment-view-compare-runs-card']")
    return holder.filter(has=heading).first


def assert_no_chart_is_missing(page):
    assert page.get_by_text("No charts in this section").count() == 0
    assert page.get_by_text("No images found").count() == 0
    assert page.get_by_text("Something went wrong").count() == 0


@pytest.mark.parametrize(
    ("words", "legends"),
    [
        ("by distribution", ["normal", "uniform"]),
        ("by size", ["1", "64"]),
        ("by setting", ["normal / 1", "uniform / 64"]),
    ],
)
def test_averages_are_drawn_for_each_level_and_each_cell(shown, open_page, words, legends):
    page = open_page(view(shown, words), "Variety while training")
    for legend in legends:
        page.get_by_text(f"Group: {legend}", exact=True).first.wait_for()
    for metric in ("collapse/coverage", "collapse/recall", "D/loss", "final/coverage"):
        card(page, metric).locator("svg.main-svg").first.wait_for()
    card(page, "collapse/coverage").get_by_text(f"{legends[0]} (").first.wait_for()
    assert_no_chart_is_missing(page)


def test_every_run_is_drawn_with_its_settings_and_its_samples(shown, open_page):
    page = open_page(view(shown, "every run"), "Variety while training")
    for label in shown.labels:
        page.get_by_text(label, exact=True).first.wait_for()
    assert page.get_by_text("latents", exact=True).count() == 0  # the parent
    page.get_by_text("12 matching runs").wait_for()
    for metric in ("collapse/kl_corrected", "G/loss", "final/recall vs. final/coverage"):
        card(page, metric).locator("svg.main-svg").first.wait_for()
    settings = card(page, "Parallel Coordinates")
    settings.locator("canvas").first.wait_for()
    settings.get_by_text("latent.distribution").first.wait_for()
    card(page, "samples").locator("img").first.wait_for()
    page.get_by_text("Runs side by side").first.wait_for()
    assert_no_chart_is_missing(page)


def test_the_samples_of_one_run_a_cell_stand_side_by_side(shown, open_page):
    page = open_page(view(shown, "samples of seed 0"), "Samples")
    page.get_by_text("4 matching runs").wait_for()
    images = card(page, "samples").locator("img")
    images.nth(3).wait_for()
    assert images.count() == 4
    assert page.get_by_text("No image logged at this step").count() == 0
    assert_no_chart_is_missing(page)


def test_the_plain_comparison_draws_parallel_coordinates(shown, open_page):
    url = compare_url(shown.url, shown.experiment_id, shown.run_ids)
    page = open_page(url, "Comparing 12 Runs from 1 Experiment")
    page.get_by_text("Parallel Coordinates Plot").wait_for()
    page.locator("svg.main-svg").first.wait_for()
    page.get_by_text("latent.distribution").first.wait_for()


def test_the_views_are_in_the_pages_own_list(shown, open_page):
    page = open_page(view(shown, "by distribution"), "Variety while training")
    page.get_by_role("button", name="latents by distribution").click()
    for words in shown.views:
        page.get_by_text(f"latents {words}", exact=True).last.wait_for()
