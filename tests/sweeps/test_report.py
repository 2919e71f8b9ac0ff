"""The answer's files agree with each other, and with the runs."""

import json
import sys
from dataclasses import replace

import pytest

from ganray.config.schema import Config
from ganray.sweeps import report
from ganray.sweeps.report import write
from ganray.sweeps.results import RunResult
from tests.sweeps.small import KINDS, OPTIMIZERS, SIZES, results


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Config(home=tmp_path_factory.mktemp("home"), name="s")


def test_how_it_was_made_holds_no_secrets(base, monkeypatch):
    root = "--data.root=https://me:hush@host/a?X-Sig=hush"
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py", root, "--name", "x"])
    made = report._made(base, "0123")
    assert made["command"] == "python jobs/sweep.py --data.root=https://***@host/a?*** --name x"


def test_all_parts_of_an_answer_tell_the_same(base, tmp_path):
    study = results(KINDS, SIZES, diverged=["normal-1-s0"], failed=["uniform-10-s1"])
    answer = write(study, base, tmp_path, censored=False, commit="abc123")
    told = json.loads((tmp_path / "report.json").read_text())
    rows = {tuple(row["levels"]): row for row in told["ranking"]}
    assert told["ranking"][0]["levels"][0] == "uniform"
    assert rows["normal", "1"]["diverged"] == 1
    assert rows["normal", "1"]["coverage"]["value"] == pytest.approx((0 + 0.12 + 0.14) / 3)
    assert rows["uniform", "10"]["coverage"]["n"] == 2
    assert answer.metrics["sweep/best_coverage"] == pytest.approx(0.22)
    assert answer.metrics["sweep/diverged"] == 1
    assert told["runs"]["s.uniform-10-s1"] == {"status": "failed"}
    shares = {tuple(e["of"]): e["value"] for e in told["share_of_variance"]["coverage"]}
    assert max(shares, key=shares.get) == ("latent.distribution",)
    assert answer.metrics["sweep/coverage_share_of_latent.distribution"] == pytest.approx(
        shares["latent.distribution",]
    )
    html = answer.page.read_text()
    for text in (told["summary"].split(".")[0], "abc123"):
        assert text in html
        assert answer.page in answer.files
    assert told["summary"] in answer.text
    assert told["summary"] in answer.note
    assert all(file.exists() for file in answer.files)


@pytest.mark.parametrize("how", ["a search", "a run that was stopped"])
def test_of_censored_runs_no_effects_are_given(base, tmp_path, how):
    found = results(KINDS, OPTIMIZERS)
    if how == "a run that was stopped":
        stopped = {found.plan.trials[0].name: RunResult("stopped", {"coverage": 0.1})}
        found = replace(found, by_trial={**found.by_trial, **stopped})
    answer = write(found, base, tmp_path, censored=how == "a search")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["share_of_variance"] == {}
    assert "none are given" in told["summary"]
    assert not [name for name in answer.metrics if "share_of" in name]
