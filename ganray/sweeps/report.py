"""The answer of a study: ranking, effects, figures, one HTML page, and a paragraph in words."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ganray.config.schema import Config
from ganray.config.serialization import flatten, without_secrets
from ganray.metrics.intervals import Estimate
from ganray.sweeps.analysis import Effect, Row, anova, ranking
from ganray.sweeps.report_html import draw, page
from ganray.sweeps.results import RANKED, Results
from ganray.sweeps.summary import markdown, summary, table

PAGE, JSON = "report.html", "report.json"
_EXPLAINED = ("coverage", "recall")
"""Metrics whose variance is split among the axes."""
_VERSIONS = ("ganray", "torch", "ray", "mlflow")


@dataclass(frozen=True)
class Answer:
    """What a study came to."""

    text: str
    """For the terminal."""
    note: str
    """The same as Markdown."""
    metrics: Mapping[str, float]
    """Of the study as a whole, for MLflow."""
    page: Path
    """The HTML file."""
    files: tuple[Path, ...]
    """All files, the page among them."""


def write(
    results: Results, base: Config, folder: Path, *, censored: bool, commit: str = ""
) -> Answer:
    """Answer a study from the outcomes of its runs, into files of its folder.

    Args:
        results: of the study.
        base: the config that its runs have in common.
        folder: of the study.
        censored: runs were chosen by their results, so effects would be wrong; as they are where
            any run was stopped by its own.
        commit: of the code.
    """
    censored = censored or results.count("stopped") > 0
    rows = ranking(results)
    effects = {} if censored else {metric: anova(results, metric) for metric in _EXPLAINED}
    words = summary(results, rows, censored=censored)
    figures = draw(results, effects, base.home / "runs", folder / "figures")
    html = page(results, rows, figures, words, _made(base, commit))
    files = [folder / PAGE, folder / JSON]
    files[0].write_text(html)
    files[1].write_text(json.dumps(_plain(results, rows, effects, words), indent=1))
    files += sorted((folder / "figures").glob("*.png"))
    axes = results.plan.axes
    wide = shutil.get_terminal_size((140, 0)).columns  # a job's log is no terminal
    return Answer(
        text=f"{table(rows, axes, wide)}\n\n{words}",
        note=f"{words}\n\n{markdown(rows, axes)}",
        metrics=_metrics(results, rows, effects),
        page=files[0],
        files=tuple(files),
    )


def _made(base: Config, commit: str) -> dict[str, Any]:
    ours, plain = flatten(base), flatten(Config())
    return {
        "command": " ".join(["python", *map(without_secrets, sys.argv)]),
        "commit": commit,
        "differs from the defaults": {
            name: value
            for name, value in ours.items()
            if name != "home" and (name not in plain or value != plain[name])
        },
        "versions": {name: version(name) for name in _VERSIONS}
        | {"python": sys.version.split()[0]},
    }


def _plain(
    results: Results, rows: list[Row], effects: Mapping[str, list[Effect]], words: str
) -> dict[str, Any]:
    """As JSON; an interval without ends has None."""

    def interval(estimate: Estimate) -> dict[str, Any]:
        ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        return {k: v if abs(v) < float("inf") else None for k, v in ends.items()} | {
            "n": estimate.n
        }

    return {
        "study": results.plan.name,
        "axes": {axis.name: axis.labels for axis in results.plan.axes},
        "summary": words,
        "ranked_by": list(RANKED),
        "ranking": [
            {
                "levels": row.levels,
                "runs": row.n,
                "diverged": row.diverged,
                "failed": row.failed,
                "not_told_from_best": row.best_tied,
            }
            | {name: interval(estimate) for name, estimate in row.means.items()}
            for row in rows
        ],
        "share_of_variance": {
            metric: [{"of": effect.factors} | interval(effect.share) for effect in found]
            for metric, found in effects.items()
        },
        "runs": {
            trial.name: {"status": results.get(trial).status, **results.get(trial).values}
            for trial in results.plan.trials
        },
    }


def _metrics(
    results: Results, rows: list[Row], effects: Mapping[str, list[Effect]]
) -> dict[str, float]:
    values = {f"sweep/{s}": float(results.count(s)) for s in ("finished", "diverged", "failed")}
    if rows:
        values |= {
            f"sweep/best_{name}": rows[0].means[name].value
            for name in RANKED
            if name in rows[0].means
        }
    for metric, found in effects.items():
        for effect in found:
            named = "_x_".join(factor.replace("+", "_and_") for factor in effect.factors)
            values[f"sweep/{metric}_share_of_{named}".replace(" ", "_")] = effect.share.value
    return values
