"""Report of a sweep: ranking, pairwise differences and charts as text, Markdown, HTML and JSON."""

from __future__ import annotations

import base64
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ganray import log
from ganray.config.schema import Config
from ganray.config.serialization import flatten, typed, without_secrets
from ganray.evaluation.suite import METRICS_BY_NAME
from ganray.files import write_atomic
from ganray.sweeps import charts
from ganray.sweeps.analysis import Difference, Effect, RankedSetting, anova, compare, ranking
from ganray.sweeps.axes import Axis
from ganray.sweeps.charts import decimals, direction, format_estimate, title_of
from ganray.sweeps.family import COMPARED, LEVELS_ALPHA, MIN_SEEDS, RANKING_ALPHA, WITHIN_ALPHA
from ganray.sweeps.results import RANKED, Results
from ganray.sweeps.summary import interactions, summarize

HTML, JSON = "report.html", "report.json"
_COLUMNS = ["coverage", "recall", "vendi_share", "kl_corrected", "modes_held"]
_COLUMNS += ["half_life_kimg", "images_per_s"]
"""Metrics of the ranking table, the most important first."""
_BARS = ("coverage", "recall", "vendi_share")
"""Metrics in [0, 1], drawn as bars behind their numbers."""
_DESCRIPTIONS = {
    "half_life_kimg": "thousand images until recall fell to half its peak, of runs where it did",
    "images_per_s": "median of the training images per second; depends on the machine",
}
_LIMIT = 20
"""Maximum number of rows in text and Markdown."""
_CSS_PER_INCH = 100
"""CSS pixels per inch of a chart, so that its letters are as large as those of the page."""


@dataclass(frozen=True)
class Report:
    """The report of a sweep, already written to its folder."""

    text: str
    """Ranking and summary for the terminal."""
    markdown: str
    """Summary, ranking and pairwise differences for the note in MLflow."""
    metrics: Mapping[str, float]
    """Metrics of the sweep as a whole, for MLflow."""
    ranking: Sequence[RankedSetting]
    """Settings, the best first."""
    html: Path
    files: tuple[Path, ...]
    """All files, the HTML page among them."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    unit: str = ""
    numeric: bool = True
    bar: bool = False
    """Whether a bar shows the value, which lies in [0, 1]."""


@dataclass(frozen=True)
class Table:
    """A table that is rendered as text, as Markdown, or as HTML by the template."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    """Entries; those of numeric columns are a number, optionally followed by its interval."""
    ties: Sequence[bool] = ()
    """Whether each row is the first one or not significantly worse."""

    def text(self, width: int) -> str:
        """Return aligned lines; columns at the right are left out if they do not fit."""
        lines = [[column.title for column in self.columns], *self._rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        while sum(widths) + 2 * (len(widths) - 1) > width and len(widths) > 1:
            widths.pop()
        aligned = [
            "  ".join(
                entry.rjust(n) if column.numeric else entry.ljust(n)
                for entry, n, column in zip(line, widths, self.columns, strict=False)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(aligned + self._notes())

    def markdown(self) -> str:
        """Return a Markdown table with all columns."""
        rule = ["--:" if column.numeric else ":--" for column in self.columns]
        lines = [[column.title for column in self.columns], rule, *self._rows()]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([rows, *self._notes()])

    def _rows(self) -> list[list[str]]:
        rows = [[entry or "-" for entry in row] for row in self.rows[:_LIMIT]]
        for row, tie in zip(rows[1:], self.ties[1:], strict=False):
            row[0] = f"={row[0]}" if tie else row[0]
        return rows

    def _notes(self) -> list[str]:
        more = len(self.rows) - _LIMIT
        notes = [f"... and {more} more"] if more > 0 else []
        return notes + ["= not significantly worse than the first"] * any(self.ties[1:])


def write(
    results: Results, base: Config, folder: Path, *, censored: bool, commit: str = ""
) -> Report:
    """Write the report of a sweep into its folder.

    Args:
        results: Results of the runs.
        base: Config that all runs have in common.
        folder: Folder of the sweep.
        censored: Whether runs were chosen or stopped by their results. Their means are biased, so
            neither differences nor explained variance are reported.
        commit: Commit of the code.
    """
    censored = censored or results.count("stopped") > 0
    axes = results.plan.axes
    settings = ranking(results)
    effects = {} if censored else {metric: anova(results, metric) for metric in COMPARED}
    differences = [] if censored else pairwise_differences(results, effects["coverage"])
    summary = summarize(
        results, settings, differences, effects.get("coverage", []), censored=censored
    )
    table, pairs = ranking_table(settings, axes), difference_table(differences, axes)
    figures = draw_charts(results, effects, base.home / "runs", folder / "figures")
    details = _details(base, commit)
    page = render_html(results, (table, pairs), figures, summary, details, censored=censored)
    write_atomic(folder / HTML, page)
    data = {
        "sweep": results.plan.name,
        "axes": {axis.name: axis.labels for axis in axes},
        "summary": summary,
        "ranked_by": list(RANKED),
        "ranking": [asdict(setting) for setting in settings],
        "differences": [asdict(d) | {"significant": d.significant} for d in differences],
        "share_of_variance": {m: [asdict(effect) for effect in effects[m]] for m in effects},
        "runs": {trial.name: asdict(results.get(trial)) for trial in results.plan.trials},
    }
    write_atomic(folder / JSON, json.dumps(_finite(data), indent=1))
    markdown = [summary, table.markdown(), *([pairs.markdown()] if pairs.rows else [])]
    return Report(
        text=f"{table.text(log.columns())}\n\n{log.wrap(summary)}",
        markdown="\n\n".join(markdown),
        metrics=_metrics(results, settings, effects),
        ranking=settings,
        html=folder / HTML,
        files=(folder / HTML, folder / JSON, *sorted((folder / "figures").glob("*.png"))),
    )


def pairwise_differences(results: Results, effects: Sequence[Effect]) -> list[Difference]:
    """Return all pairs of levels; of interacting axes also at each level of the other axis.

    The latter, which the summary does not name, are a family of their own.
    """
    names = [axis.name for axis in results.plan.axes]
    pairs = [tuple(map(names.index, effect.factors)) for effect in interactions(effects)]
    return [
        *compare(results, [(i, None) for i in range(len(names))]),
        *compare(results, [(first, second) for first, second in pairs], alpha=WITHIN_ALPHA),
    ]


def ranking_table(settings: Sequence[RankedSetting], axes: Sequence[Axis]) -> Table:
    """Return a table with one row per setting, the best first."""
    columns = [Column("rank"), *(Column(axis.title, numeric=False) for axis in axes)]
    rows = [[f"{s.rank:.1f}".replace("nan", ""), *s.levels] for s in settings]
    for name in ("n", "diverged", "failed"):
        counts = [getattr(setting, name) for setting in settings]
        if name == "n" or any(counts):
            columns.append(Column("runs" if name == "n" else name))
            rows = [[*row, str(n or "")] for row, n in zip(rows, counts, strict=True)]
    for name in _COLUMNS:
        means = [setting.means.get(name) for setting in settings]
        if not any(means):
            continue
        title, _, unit = title_of(name).removesuffix(")").partition(" (")
        arrow = {"higher": "\u00a0↑", "lower": "\u00a0↓", "neither": ""}[direction(name)]
        columns.append(Column(title + arrow, unit, bar=name in _BARS))
        digits = 1 if name == "modes_held" else decimals([mean.value for mean in means if mean])
        entries = [" ".join(format_estimate(mean, digits)) if mean else "" for mean in means]
        rows = [[*row, entry.rstrip()] for row, entry in zip(rows, entries, strict=True)]
    has_ties = any(setting.n >= MIN_SEEDS for setting in settings)
    return Table(columns, rows, [setting.ties_best for setting in settings] if has_ties else ())


def difference_table(differences: Sequence[Difference], axes: Sequence[Axis]) -> Table:
    """Return a table with one row per pair of levels, the one of higher coverage first."""
    titles = {axis.name: axis.title for axis in axes}
    coverage = [d for d in differences if d.metric == "coverage"]
    lower = {(d.axis, d.a, d.b, d.at) for d in coverage if d.value.value < 0}
    pairs: dict[tuple[str, ...], dict[str, str]] = {}
    for d in differences:
        shown = d.swapped() if (d.axis, d.a, d.b, d.at) in lower else d
        key = (titles[d.axis], shown.a, shown.b, d.at)
        mark = " *" if d.significant else ""
        pairs.setdefault(key, {})[d.metric] = f"{shown.value.brief()}{mark}"
    names = ["axis", "level", "minus level", "at"][: 4 if any(key[3] for key in pairs) else 3]
    columns = [Column(name, numeric=False) for name in names]
    columns += [Column(metric) for metric in COMPARED]
    rows = [
        [*key[: len(names)], *(entries.get(metric, "") for metric in COMPARED)]
        for key, entries in pairs.items()
    ]
    return Table(columns, rows)


def draw_charts(
    results: Results, effects: Mapping[str, Sequence[Effect]], runs: Path, folder: Path
) -> dict[str, list[tuple[str, Path]]]:
    """Draw all charts into a folder; return (title, PNG) by section of the page.

    Args:
        results: Results of the sweep.
        effects: Explained variance by metric.
        runs: Parent of the run folders.
        folder: Folder of the PNGs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name for r in results.by_trial.values() if r.scored for name in r.values}
    figures: dict[str, list[tuple[str, Path]]] = {"settings": [], "runs": [], "variance": []}
    for metric in ("coverage", "recall", "kl_corrected"):
        if metric in measured:
            figures["settings"].append((title_of(metric), folder / f"heat-{metric}.png"))
            charts.heat_maps(results, metric, figures["settings"][-1][1])
    if "coverage" in measured:
        figures["runs"].append(("coverage", folder / "runs-coverage.png"))
        charts.strip_chart(results, "coverage", figures["runs"][-1][1])
    for metric, explained in effects.items():
        if explained:
            figures["variance"].append((title_of(metric), folder / f"effects-{metric}.png"))
            charts.effects_chart(explained, title_of(metric), figures["variance"][-1][1])
    figures["samples"] = [("samples", folder / "samples.png")]
    charts.contact_sheet(results, runs, folder / "samples.png")
    return figures


def render_html(
    results: Results,
    tables: tuple[Table, Table],
    figures: Mapping[str, Sequence[tuple[str, Path]]],
    summary: str,
    details: Mapping[str, Any],
    *,
    censored: bool,
) -> str:
    """Return the HTML page, which embeds all charts.

    Args:
        results: Results of the sweep.
        tables: Ranking and pairwise differences.
        figures: (title, PNG) by section.
        summary: Summary in sentences.
        details: How the sweep was made, by topic: a text or a mapping.
        censored: Whether runs were chosen or stopped by their results.
    """
    plan, (table, pairs) = results.plan, tables
    seeds = len({trial.rng_seed for trial in plan.trials})
    counts = [(len(plan.trials), "runs"), (len(plan.settings), "settings"), (seeds, "seeds each")]
    statuses = ("finished", "diverged", "failed", "stopped", "running", "waiting")
    counts += [(results.count(status), status) for status in statuses]
    metrics = [*_COLUMNS, "precision", "density"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        plan=plan,
        counts=[(f"{count:,}", noun) for count, noun in counts if count],
        summary=summary,
        ranked=[title_of(name) for name in RANKED],
        table=table,
        pairs=pairs,
        min_seeds=MIN_SEEDS,
        alphas=[f"{100 * alpha:g}" for alpha in (LEVELS_ALPHA, RANKING_ALPHA, WITHIN_ALPHA)],
        too_few_seeds=seeds < MIN_SEEDS and not censored,
        figures={k: [(title, *_embed(p)) for title, p in paths] for k, paths in figures.items()},
        metrics=[(title_of(m), direction(m), _describe(m)) for m in metrics],
        details=details,
    )


def _describe(metric: str) -> str:
    return _DESCRIPTIONS.get(metric) or METRICS_BY_NAME[metric].description


def _embed(path: Path) -> tuple[str, int]:
    """Return a PNG as a data URL, and its width in CSS pixels."""
    with Image.open(path) as image:
        width = round(image.width * _CSS_PER_INCH / image.info["dpi"][0])
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", width


def _details(base: Config, commit: str) -> dict[str, Any]:
    """Return how the sweep was made, without passwords."""
    values, defaults = flatten(base), flatten(Config())
    changed = {
        k: typed(v) for k, v in values.items() if k != "home" and v != defaults.get(k, object())
    }
    script, *words = sys.argv
    program = script if script.startswith("ganray ") else f"python {shlex.quote(script)}"
    versions = {name: version(name) for name in ("ganray", "torch", "ray", "mlflow")}
    details = {
        "command": f"{program} {shlex.join(map(without_secrets, words))}",
        "commit": commit,
        "changed defaults": changed,
        "versions": versions | {"python": sys.version.split()[0]},
    }
    return {topic: value for topic, value in details.items() if value}


def _finite(value: Any) -> Any:
    """Replace nan and infinities by None, as JSON has none."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(
    results: Results,
    settings: Sequence[RankedSetting],
    effects: Mapping[str, Sequence[Effect]],
) -> dict[str, float]:
    values = {f"sweep/{s}": float(results.count(s)) for s in ("finished", "diverged", "failed")}
    best = settings[0].means if settings else {}
    values |= {f"sweep/best_{name}": best[name].value for name in RANKED if name in best}
    for metric, explained in effects.items():
        for effect in filter(lambda effect: effect.is_determined, explained):
            factors = "_x_".join(factor.replace("+", "_and_") for factor in effect.factors)
            name = f"sweep/{metric}_share_of_{factors}".replace(" ", "_")
            values[name] = effect.share.value
    return values
