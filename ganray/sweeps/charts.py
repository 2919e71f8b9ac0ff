"""Charts of a sweep: heat maps of means, all runs as dots, explained variance, samples."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from PIL import Image

from ganray import log
from ganray.evaluation.suite import METRICS_BY_NAME
from ganray.figures import COLORS
from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.analysis import HIGHER, RESIDUAL, Effect
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.results import Results
from ganray.training.run_figures import list_samples
from ganray.training.state import GRID_COLUMNS, GRID_ROWS

DPI = 200
_SAMPLES_DPI = 140
_MAX_WIDTH = 11.5
"""Width of a figure in inches, unless a single panel is wider."""
_CAPTION = 0.22
"""Height of the caption of a tile, as a share of the tile's width."""
_TEXT, _MUTED, _BLANK = "0.15", "0.45", "0.92"
_TITLES = {
    "kl_corrected": "corrected KL (nats)",
    "vendi_share": "Vendi share",
    "modes_held": "modes held",
    "half_life_kimg": "half-life (kimg)",
    "images_per_s": "speed (images/s)",
}
_NO_AXIS = Axis("", (Level("", {}),))


def title_of(metric: str) -> str:
    """Return a metric's name for charts and tables, with its unit in parentheses."""
    return _TITLES.get(metric, metric)


def direction(metric: str) -> str:
    """Return which values of a metric are better: "higher", "lower" or "neither"."""
    return METRICS_BY_NAME[metric].better if metric in METRICS_BY_NAME else "neither"


def decimals(values: Sequence[float]) -> int:
    """Return the decimals that show the largest value with three digits, at most 2."""
    largest = max(map(abs, values), default=0.0)
    return 2 if largest < 10 else 1 if largest < 100 else 0


def format_estimate(estimate: Estimate, digits: int) -> tuple[str, str]:
    """Return a mean and half its interval, e.g. ("0.61", "±0.05"); ("0.61", "") for one run.

    Of an interval that is cut at the end of the metric's range, the longer side counts.
    """
    half = max(estimate.high - estimate.value, estimate.value - estimate.low)
    end = f"±{_format(half, digits)}" if math.isfinite(half) and estimate.n > 1 else ""
    return _format(estimate.value, digits), end


def _format(value: float, digits: int) -> str:
    """Return a number with these decimals, but with two significant digits if it is small."""
    if digits == 2 and 1e-4 <= abs(value) < 0.1:
        return log.two_digits(value)
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0 turns -0.00 into 0.00


@dataclass(frozen=True)
class SettingGrid:
    """All settings of a sweep: first axis down, second across, a panel for all other levels."""

    rows: Axis
    columns: Axis
    """An axis without a name and with one level if the sweep has a single axis."""
    titles: tuple[str, ...]
    """Levels of the other axes, one title per panel."""
    values: np.ndarray
    """The metric of scored runs, float64 (panels, rows, columns, seeds); nan where unknown."""
    statuses: np.ndarray
    """Status of each run, objects (panels, rows, columns, seeds); None where none is planned."""
    names: np.ndarray
    """Name of each run, likewise."""

    def estimate(self, *index: int) -> Estimate | None:
        """Return the mean over the scored runs of a setting with its 95 % t-interval."""
        values = self.values[index]
        values = values[np.isfinite(values)]
        return replicate_interval(values.tolist()) if values.size else None

    def status(self, *index: int) -> str:
        """Return the status of a setting; if its runs differ, the one that may still change."""
        order = ("running", "waiting", "finished", "stopped", "diverged", "failed")
        return next((status for status in order if status in self.statuses[index]), "not planned")


def setting_grid(results: Results, metric: str) -> SettingGrid:
    """Arrange a metric of all runs as panels."""
    axes = list(results.plan.axes)
    rows, columns, *others = [*axes, _NO_AXIS, _NO_AXIS][: max(2, len(axes))]
    shape = (len(rows.levels), len(columns.levels), -1)

    def panels(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.reshape(*shape, array.shape[-1]), 2, 0)

    titles = [
        ", ".join(f"{axis.title} {label}" for axis, label in zip(others, labels, strict=True))
        for labels in itertools.product(*(axis.labels for axis in others))
    ]
    return SettingGrid(
        rows,
        columns,
        tuple(titles),
        values=panels(results.array(metric)),
        statuses=panels(results.table(lambda _, result: result.status, None)),
        names=panels(results.table(lambda trial, _: trial.name, None)),
    )


def heat_maps(results: Results, metric: str, path: Path) -> None:
    """Draw the mean of each setting, on one color scale for all panels."""
    grid = setting_grid(results, metric)
    shape = grid.values.shape[:3]
    estimates = {index: grid.estimate(*index) for index in np.ndindex(shape)}
    means = np.array([e.value if e else math.nan for e in estimates.values()]).reshape(shape)
    known = means[np.isfinite(means)].tolist()
    low, high = min([*known, 0.0]), max([*known, 0.0]) or 1.0
    better = direction(metric)
    colors = colormaps["viridis_r" if better == "lower" else "viridis"]
    figure, axes = _panels(grid, 0.9 * shape[2] + 0.2, 0.45 * shape[1])
    for panel, ax in enumerate(axes):
        ax.imshow(means[panel], cmap=colors, vmin=low, vmax=high, aspect="auto")
        for y, x in np.ndindex(shape[1:]):
            if (estimate := estimates[panel, y, x]) is None:
                _write(ax, x, y, "", _missing(grid, panel, y, x), _MUTED)
                continue
            # Viridis is dark below its middle.
            level = colors((estimate.value - low) / (high - low))
            color = "white" if level[1] < 0.62 else "black"
            value, half = format_estimate(estimate, decimals([*known, high]))
            _write(ax, x, y, value, f"{half} {_run_notes(grid, panel, y, x)}".strip(), color)
        ax.set_facecolor(_BLANK)
        ax.set_xticks(range(shape[2]), grid.columns.labels, fontsize=9, color=_TEXT)
        ax.set_xticks(np.arange(shape[2] + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(shape[1] + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="both", length=0)
        ax.set_xlabel(grid.columns.title, fontsize=9, color=_MUTED)
    if max(map(len, grid.columns.labels)) > 8:
        for ax in axes:
            ax.tick_params(axis="x", rotation=30)
    bar = figure.colorbar(axes[0].images[0], ax=axes, fraction=0.05, pad=0.015, aspect=25)
    bar.ax.tick_params(labelsize=8, colors=_MUTED)
    bar.outline.set_visible(False)
    title = title_of(metric) + ("" if better == "neither" else f", {better} is better")
    note = "Mean over seeds and half of its 95 % t-interval."
    if "diverged" in grid.statuses:
        note += " †: runs that diverged, counted with the worst value."
    if _num_runs(grid).min() < _num_runs(grid).max():
        note += " n: number of runs, where some are missing."
    _save(figure, path, title, note)


def _write(ax: Any, x: int, y: int, value: str, note: str, color: str) -> None:
    """Write a value in bold over a small note at a place of a heat map."""
    style = {"ha": "center", "color": color, "textcoords": "offset points"}
    if value:
        ax.annotate(value, (x, y), (0, 0 if note else -3), weight="bold", fontsize=9, **style)
    ax.annotate(note, (x, y), (0, -9 if value else -3), fontsize=7.5, **style)


def _num_runs(grid: SettingGrid) -> np.ndarray:
    return np.isfinite(grid.values).sum(-1)


def _run_notes(grid: SettingGrid, *index: int) -> str:
    """Return how many runs of a setting diverged or are missing, e.g. "†1 n=4"."""
    num_runs, diverged = _num_runs(grid), (grid.statuses[index] == "diverged").sum()
    notes = [f"†{diverged}"] if diverged else []
    notes += [f"n={num_runs[index]}"] if num_runs[index] < num_runs.max() else []
    return " ".join(notes)


def _missing(grid: SettingGrid, *index: int) -> str:
    """Return why a setting has no mean."""
    status = grid.status(*index)
    return "no value" if status == "finished" else status


def strip_chart(results: Results, metric: str, path: Path) -> None:
    """Draw every run as a dot, as a mean hides that some runs collapse and others do not."""
    grid = setting_grid(results, metric)
    rows, columns = grid.values.shape[1:3]
    width = {1: 7.5, 2: 4.3}.get(len(grid.titles), 2.9)
    figure, axes = _panels(grid, width, rows * (0.14 * columns + 0.12))
    colors = _column_colors(grid.columns.labels)
    known = np.append(grid.values[np.isfinite(grid.values)], 0.0)
    margin = 0.03 * (np.ptp(known) or 1.0)
    for panel, ax in enumerate(axes):
        for y in range(0, rows, 2):
            ax.axhspan(y - 0.5, y + 0.5, color="0.965", linewidth=0, zorder=0)
        for y, x in np.ndindex(rows, columns):
            if not (estimate := grid.estimate(panel, y, x)):
                continue
            at = y + ((x + 0.5) / columns - 0.5) * 0.84
            ax.plot([estimate.low, estimate.high], [at, at], color=colors[x], linewidth=1.2)
            ax.plot(estimate.value, at, "|", color=_TEXT, markersize=8, mew=1.6, zorder=4)
            diverged = grid.statuses[panel, y, x] == "diverged"
            for runs, marker in ((~diverged, "o"), (diverged, "x")):
                values = grid.values[panel, y, x][runs]
                ax.scatter(values, np.full(len(values), at), 20, color=colors[x], marker=marker,
                           alpha=0.75, linewidths=0.5 if marker == "o" else 1.5,
                           edgecolors="white" if marker == "o" else None,
                           clip_on=False, zorder=3)  # fmt: skip
        # The runs set the scale: an interval over two seeds can be many times wider.
        ax.set_xlim(known.min() - margin, known.max() + margin)
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_xlabel(title_of(metric), fontsize=9, color=_TEXT)
        ax.grid(axis="x", alpha=0.25)
        ax.tick_params(axis="x", labelsize=8, colors=_MUTED)
    if columns > 1:
        dots = [Line2D([], [], color=color, marker="o", linestyle="") for color in colors]
        names = [f"{grid.columns.title} {label}" for label in grid.columns.labels]
        figure.legend(dots, names, loc="outside upper left", ncols=int(figure.get_figwidth() / 1.6),
                      frameon=False, fontsize=9, handletextpad=0.1)  # fmt: skip
    note = "A dot is a run, the upright bar the mean, the line its 95 % t-interval."
    if "diverged" in grid.statuses:
        note += " A cross is a run that diverged, counted with the worst value."
    _save(figure, path, "", note)


def effects_chart(effects: Sequence[Effect], title: str, path: Path) -> None:
    """Draw the share of the variance that axes, interactions and seeds explain."""
    effects = sorted(effects, key=lambda e: (e.factors == RESIDUAL, -e.share.value))
    figure = Figure((7.5, 0.34 * len(effects) + 1.0), layout="constrained")
    ax = figure.subplots()
    ends = [max(e.share.value, min(1.0, e.share.high)) if e.is_determined else 0 for e in effects]
    for y, (effect, high) in enumerate(zip(effects, ends, strict=True)):
        share = max(0.0, effect.share.value)
        if not effect.is_determined:
            words = f"not determined with {effect.share.n} seeds"
            ax.annotate(words, (0, y), (5, 0), textcoords="offset points", va="center", fontsize=9,
                        color=_MUTED)  # fmt: skip
            continue
        interaction = len(effect.factors) > 1 or effect.factors == HIGHER
        color = "0.7" if effect.factors == RESIDUAL else COLORS[4 if interaction else 0]
        ax.barh(y, share, 0.66, color=color)
        low = min(share, max(0.0, effect.share.low))
        ax.plot([low, high], [y, y], color=_TEXT, linewidth=1.2, marker="|", markersize=5)
        ax.annotate(f"{share:.0%}", (high, y), (5, 0), textcoords="offset points", va="center",
                    fontsize=9, color=_TEXT)  # fmt: skip
    ax.set_yticks(range(len(effects)), [effect_name(e) for e in effects], fontsize=9)
    ax.set(xlim=(0, 1.1 * max([*ends, 0.1])), ylim=(len(effects) - 0.5, -0.5))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("share of the variance over all runs", fontsize=9, color=_TEXT)
    ax.tick_params(axis="x", labelsize=8, colors=_MUTED)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    note = "Blue: an axis; light blue: an interaction; gray: the seeds; lines: 95 % intervals."
    _save(figure, path, title, note)


def effect_name(effect: Effect) -> str:
    """Return the axes of an effect without their sections, e.g. "size × optimizer"."""  # noqa: RUF002
    if effect.factors == RESIDUAL:
        return "seeds"
    names = (" ".join(p.rpartition(".")[2] for p in f.split("+")) for f in effect.factors)
    return " × ".join(names)  # noqa: RUF001


def contact_sheet(results: Results, runs: Path, path: Path) -> None:
    """Draw samples of each setting: of its first finished run, in the order of seeds.

    The mean coverage is written below each tile. `runs` is the parent of the run folders.
    """
    grid = setting_grid(results, "coverage")
    shape = grid.values.shape[:3]
    tiles = {index: _samples(grid, runs, *index) for index in np.ndindex(shape)}
    sides = [tile.shape for tile in tiles.values() if tile is not None] or [(1, 1)]
    tall = sides[0][0] / sides[0][1]
    inches = float(np.clip(8 / math.sqrt(math.prod(shape)), 0.6, 1.3))
    figure, axes = _panels(grid, inches * shape[2], inches * (tall + _CAPTION) * shape[1])
    for panel, ax in enumerate(axes):
        for y, x in np.ndindex(shape[1:]):
            tile = tiles[panel, y, x]
            bottom = y - 0.48 + 0.96 * tall / (tall + _CAPTION)
            box = (x - 0.48, x + 0.48, bottom, y - 0.48)
            if tile is None:
                status = _missing(grid, panel, y, x).replace("value", "samples")
                ax.text(x, y - 0.06, status, ha="center", va="center", fontsize=7, color=_MUTED)
                tile = np.full((1, 1, 3), 232, np.uint8)
            ax.imshow(tile, extent=box, aspect="auto")
            if estimate := grid.estimate(panel, y, x):
                caption, _ = format_estimate(estimate, decimals([estimate.value]))
                ax.text(x, bottom + 0.02, caption, ha="center", va="top", fontsize=8.5, color=_TEXT)
        ax.set(xlim=(-0.5, shape[2] - 0.5), ylim=(shape[1] - 0.5, -0.5))
        ax.set_box_aspect((tall + _CAPTION) * shape[1] / shape[2])
        ax.set_xticks(range(shape[2]), grid.columns.labels, fontsize=9, color=_TEXT)
        ax.set_xlabel(grid.columns.title, fontsize=9, color=_MUTED)
    _save(figure, path, "", "Below each tile: coverage, mean over seeds.", dpi=_SAMPLES_DPI)


def _samples(grid: SettingGrid, runs: Path, *index: int) -> np.ndarray | None:
    """Return the newest samples of the first finished run of a setting, uint8 (h, w, 3)."""
    for name, status in zip(grid.names[index], grid.statuses[index], strict=True):
        files = list_samples(runs / name) if status == "finished" else []
        if files:
            return crop_samples(np.asarray(Image.open(files[-1]).convert("RGB")))
    return None


def crop_samples(picture: np.ndarray, count: int = 4) -> np.ndarray:
    """Return the upper left `count` rows and columns of a sample grid, uint8 (h, w, 3)."""
    height = picture.shape[0] // GRID_ROWS
    # A conditional grid may have fewer columns; samples are square where that divides the grid.
    width = height if picture.shape[1] % height == 0 else picture.shape[1] // GRID_COLUMNS
    return picture[: count * height, : count * width]


def _panels(grid: SettingGrid, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure with one axes of about this size in inches for each panel of the grid."""
    count, labels = len(grid.titles), (*grid.rows.labels, grid.rows.title)
    left = 0.5 + 0.075 * max(map(len, labels))
    columns = max(1, min(count, int((_MAX_WIDTH - left) / (width + 0.15))))
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    size = (left + columns * (width + 0.15) + 0.6, rows * (height + 0.7) + 0.6)
    figure = Figure((max(5.0, size[0]), size[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for i, ax in enumerate(axes):
        if i >= count:
            ax.remove()
            continue
        ax.set_title(grid.titles[i], fontsize=10, color=_TEXT)
        first = i % columns == 0
        names = grid.rows.labels if first else [""] * len(grid.rows.labels)
        ax.set_yticks(range(len(names)), names, fontsize=9, color=_TEXT)
        ax.set_ylabel(grid.rows.title if first else "", fontsize=9, color=_MUTED)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure, axes[:count]


def _save(figure: Figure, path: Path, title: str, note: str, dpi: int = DPI) -> None:
    """Write a figure with its title above and a note below."""
    width = int(figure.get_figwidth() * 15)
    if note:
        figure.supxlabel(textwrap.fill(note, width), x=0.01, ha="left", fontsize=8, color=_MUTED)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, weight="bold", color=_TEXT)
    figure.savefig(path, dpi=dpi)


def _column_colors(labels: Sequence[str]) -> list[Any]:
    """Return a sequential palette for numbers, a categorical one for names."""
    if len(labels) <= len(COLORS) and not all(map(_is_number, labels)):
        return list(COLORS[: len(labels)])
    return [colormaps["viridis"](x) for x in np.linspace(0, 0.88, len(labels))]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
