"""One HTML file that tells a study: its ranking, its charts, its samples, how it was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ganray.evaluation.suite import METRICS
from ganray.metrics.intervals import Estimate
from ganray.sweeps.charts import Effect, effects_chart, heat_maps, strip_chart
from ganray.sweeps.contact_sheet import contact_sheet
from ganray.sweeps.results import RANKED, Results
from ganray.sweeps.tables import digits, direction, short, title_of

COLUMNS = (
    "coverage",
    "recall",
    "vendi_share",
    "kl_corrected",
    "modes_held",
    "half_life_kimg",
    "images_per_s",
)
"""Metrics of the ranking table."""
CHARTED = ("coverage", "recall", "kl_corrected")
"""Metrics that have a heat map."""
_DECIMALS = {"modes_held": 1}
"""Of whole numbers, whose means would have two."""
_SHARES = ("coverage", "recall", "vendi_share")
"""Drawn as bars behind their numbers."""
_MEANINGS = {
    "half_life_kimg": (
        "neither",
        "thousand images until recall was half its peak; of runs where it fell",
    ),
    "images_per_s": ("neither", "images trained on each second, the median; of the machine"),
}
"""Of metrics that the suite does not know."""
_TEMPTING = ("precision", "density")
"""Told although the table lacks them: what they are is why."""
_CSS_PER_INCH = 100
"""Pixels of a page to an inch of a picture: letters are then as large as the page's."""


class Row(Protocol):
    """A cell of the study and how it fared."""

    @property
    def levels(self) -> tuple[str, ...]:
        """A label for each axis."""
        ...

    @property
    def means(self) -> dict[str, Estimate]:
        """By metric, those that are known."""
        ...

    @property
    def n(self) -> int:
        """Runs that count."""
        ...

    @property
    def diverged(self) -> int:
        """Of these."""
        ...

    @property
    def failed(self) -> int:
        """Runs that crashed, which no mean has."""
        ...

    @property
    def rank(self) -> float:
        """Mean over the metrics that are ranked by, from 1."""
        ...

    @property
    def best_tied(self) -> bool:
        """Whether the runs cannot tell it from the best."""
        ...


@dataclass(frozen=True)
class Figures:
    """PNGs of a page; a section without any is left out."""

    heat_maps: Mapping[str, Path] = field(default_factory=dict)
    """By metric."""
    strips: Mapping[str, Path] = field(default_factory=dict)
    """By metric."""
    effects: Mapping[str, Path] = field(default_factory=dict)
    """By metric."""
    sheet: Path | None = None


def draw(
    results: Results, effects: Mapping[str, Sequence[Effect]], runs: Path, folder: Path
) -> Figures:
    """Draw all figures of a page.

    Args:
        results: of the study.
        effects: by metric; what explains its variance.
        runs: the folder that holds the runs' folders.
        folder: where the PNGs go; made where missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name for o in results.by_trial.values() if o.scored for name in o.values}
    charted = [metric for metric in CHARTED if metric in measured]
    figures = Figures(
        {metric: folder / f"heat-{metric}.png" for metric in charted},
        {metric: folder / f"runs-{metric}.png" for metric in charted[:1]},
        {metric: folder / f"effects-{metric}.png" for metric, found in effects.items() if found},
        folder / "samples.png",
    )
    for metric, path in figures.heat_maps.items():
        heat_maps(results, metric, path)
    for metric, path in figures.strips.items():
        strip_chart(results, metric, path)
    for metric, path in figures.effects.items():
        effects_chart(effects[metric], path)
    contact_sheet(results, runs, folder / "samples.png")
    return figures


def page(
    results: Results,
    rows: Sequence[Row],
    figures: Figures,
    summary: str = "",
    made: Mapping[str, Any] | None = None,
) -> str:
    """The whole page as HTML that needs no other file.

    Args:
        results: of the study.
        rows: one for each cell, best first.
        figures: to be shown.
        summary: plain words; an empty line parts paragraphs.
        made: how the study was made, by topic (command, commit, base, versions): a text, or a
            mapping of names to values.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = [name for name in COLUMNS if any(name in row.means for row in rows)]
    return house.get_template("report.html").render(
        study=results.plan,
        facts=facts(results),
        paragraphs=[text for text in summary.split("\n\n") if text.strip()],
        heads=[head(name) for name in metrics],
        ranked=[head(name).title for name in RANKED if name in metrics],
        rows=[table_row(row, place, metrics, rows) for place, row in enumerate(rows, 1)],
        any_failed=any(row.failed for row in rows),
        ties=sum(row.best_tied for row in rows),
        figures={
            kind: [(title_of(metric), picture(path)) for metric, path in paths.items()]
            for kind, paths in (
                ("heat_maps", figures.heat_maps),
                ("strips", figures.strips),
                ("effects", figures.effects),
            )
        },
        sheet=picture(figures.sheet) if figures.sheet else None,
        made=[(topic, told) for topic, told in (made or {}).items() if told],
        meanings=[(title_of(name), *meaning(name)) for name in (*metrics, *_TEMPTING)],
    )


@dataclass(frozen=True)
class Head:
    """The head of a metric's column."""

    title: str
    unit: str
    arrow: str
    """Which way is better."""


def head(metric: str) -> Head:
    """Its name without the unit, which stands below."""
    title, _, unit = title_of(metric).removesuffix(")").partition(" (")
    arrow = {"higher": "↑", "lower": "↓", "neither": ""}[direction(metric)]
    return Head(title, unit, arrow)


@dataclass(frozen=True)
class Number:
    """A cell of the table."""

    value: str
    half: str
    """Half its interval, "±0.05", or empty."""
    bar: float | None
    """Percent of the cell that a bar fills, if any."""
    sort: float | None
    """None: nothing is known."""


@dataclass(frozen=True)
class TableRow:
    """A line of the table."""

    place: int
    row: Row
    numbers: tuple[Number, ...]


def table_row(row: Row, place: int, metrics: Sequence[str], rows: Sequence[Row]) -> TableRow:
    """A line of the table; decimals of a metric are the same in all rows."""
    numbers = []
    for name in metrics:
        if (mean := row.means.get(name)) is None:
            numbers.append(Number("", "", None, None))
            continue
        values = [r.means[name].value for r in rows if name in r.means]
        decimals = _DECIMALS.get(name, digits(values))
        bar = min(100.0, max(0.0, 100 * mean.value)) if name in _SHARES else None
        numbers.append(Number(*short(mean, decimals), bar, mean.value))
    return TableRow(place, row, tuple(numbers))


def facts(results: Results) -> list[tuple[str, str]]:
    """Numbers that stand under the title: (number, of what)."""
    study = results.plan
    seeds = len({trial.rng_seed for trial in study.trials})
    known = [(len(study.trials), "runs"), (len(study.settings), "settings"), (seeds, "seeds each")]
    ends = ("finished", "diverged", "failed", "stopped", "running", "waiting")
    known += [(results.count(end), end) for end in ends]
    return [(f"{count:,}", what) for count, what in known if count]


@dataclass(frozen=True)
class Picture:
    """A PNG inside a page."""

    data: str
    """Its address, which is the picture itself."""
    width: int
    """Pixels of the page."""


def picture(path: Path) -> Picture:
    """Read a PNG; one drawn for print is shown at the size it was drawn for."""
    with Image.open(path) as image:
        dpi = image.info.get("dpi", (_CSS_PER_INCH,))[0]
        width = round(image.width * _CSS_PER_INCH / dpi)
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", width)


def meaning(metric: str) -> tuple[str, str]:
    """Which way is better, and what it is, in words that need no other metric beside it."""
    better, about = _MEANINGS.get(metric) or METRICS[metric]
    if about.startswith("the same"):
        # In the suite's list it stands below the metric that it refines.
        names = list(METRICS)
        _, same = meaning(names[names.index(metric) - 1])
        about = same + about.removeprefix("the same")
    return better, about
