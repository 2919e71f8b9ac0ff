"""Charts of a study: means as heat maps, every run as a dot, what explains the variation."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ganray.metrics.intervals import Estimate
from ganray.sweeps.results import Results
from ganray.sweeps.tables import (
    Cell,
    Panel,
    Table,
    digits,
    direction,
    short,
    tabulate,
    title_of,
)

DPI = 200
"""Charts are shown at half their pixels, so that letters are sharp on any screen."""
_WIDTH = 11.5
"""Inches that a figure takes, at most, as long as one panel fits."""
_MAP = "viridis"
"""Sequential, and the same to the colour-blind; bright is good."""
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
"""Okabe and Ito 2008: told apart by the colour-blind, too."""
_INK, _PALE, _EMPTY = "0.15", "0.45", "0.94"
_BAR = 0.7
"""Inches of a colour bar with its numbers."""
CHANCE = ((), ("seeds",), ("residual",))
"""Factors of the effect that no axis has."""
HIGHER = ("higher interactions",)
"""Factors of all interactions of more than two axes together."""

Frames = list[tuple[Any, Panel]]
"""Axes, and what they show."""


class Effect(Protocol):
    """How much of a metric's variance goes with some axes."""

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of axes, several for an interaction; or `HIGHER`, or one of `CHANCE`."""
        ...

    @property
    def share(self) -> Estimate:
        """Of the variance between runs, in [0, 1]."""
        ...


def heat_maps(results: Results, metric: str, path: Path) -> None:
    """Draw the mean of each cell, a panel for each combination of the third axis and later ones.

    Args:
        results: of the study.
        metric: what is shown; one colour scale serves all panels.
        path: the PNG to write.
    """
    table = tabulate(results, metric)
    means = [cell.mean.value for cell in table.cells if cell.mean]
    scale = (min([*means, 0.0]), max([*means, 0.0]))
    scale = scale if any(scale) else (0.0, 1.0)
    wide, tall = _cell_size(table)
    below, style = _column_labels(table, wide)
    size = (wide * len(table.columns.levels), tall * len(table.rows.levels))
    better = direction(metric)
    title = title_of(metric) + ("" if better == "neither" else f", {better} is better")
    figure, frames = _panels(table, size, (title, _heat_note(table)), below, right=_BAR)
    drawn = None
    for axes, panel in frames:
        drawn = _heat(axes, table, panel, scale)
        axes.set_xticks(range(len(table.columns.levels)), table.columns.labels, **style)
        axes.set_xlabel(table.columns.title, fontsize=9, color=_PALE)
    if means:
        _color_bar(figure, frames, drawn, size[1])
    figure.savefig(path, dpi=DPI)


def _cell_size(table: Table) -> tuple[float, float]:
    """Inches of a cell: as many lines high as the fullest has."""
    lines = 2 + any(_mark(cell, table.most) for cell in table.cells)
    few = max(len(table.columns.levels), len(table.rows.levels)) <= 3
    return (1.1, 0.26 * lines) if few else (0.72, 0.17 * lines + 0.06)


def _column_labels(table: Table, wide: float) -> tuple[float, dict[str, Any]]:
    """Inches below a panel, and the style of its columns' names: turned where they are too wide."""
    longest = max(_inches(label, 9) for label in table.columns.labels)
    style: dict[str, Any] = {"fontsize": 9, "color": _INK}
    if longest < wide - 0.08:
        return 0.5 if table.columns.title else 0.1, style
    return 0.45 + 0.6 * longest, style | {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}


def _color_bar(figure: Any, frames: Frames, drawn: Any, tall: float) -> None:
    """At the right of the first row of panels, as high as these but 4 inches at most."""
    width, height = figure.get_size_inches()
    top = frames[0][0].get_position().y1
    right = max(axes.get_position().x1 for axes, _ in frames)
    share = min(tall, 4.0) / height
    place = (right + 0.15 / width, top - share, 0.14 / width, share)
    bar = figure.colorbar(drawn, cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=8, colors=_PALE)
    bar.outline.set_visible(False)


def _heat(axes: Any, table: Table, panel: Panel, scale: tuple[float, float]) -> Any:
    """One panel, of colours between two values; returns what the colour bar is made of."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    low, high = scale
    means = np.array([[c.mean.value if c.mean else np.nan for c in row] for row in panel.cells])
    colors = colormaps[_MAP + ("_r" if direction(table.metric) == "lower" else "")]
    drawn = axes.imshow(means, cmap=colors, vmin=low, vmax=high, aspect="auto")
    decimals = digits([*np.abs(means[np.isfinite(means)]), high])
    for at, cell in _places(panel):
        if cell.mean is None:
            corner = (at[0] - 0.5, at[1] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=_EMPTY, hatch="///", edgecolor="0.8",
                                     linewidth=0))  # fmt: skip
            box = {"facecolor": _EMPTY, "edgecolor": "none", "pad": 1.5}
            style = {"fontsize": 7, "color": _PALE, "ha": "center", "va": "center"}
            # One that finished without this metric was not measured by it.
            word = "no value" if cell.state == "finished" else cell.state
            if word:
                axes.text(*at, word, bbox=box, **style)
            continue
        ink = readable_on(colors((cell.mean.value - low) / (high - low)))
        _write(axes, at, [*short(cell.mean, decimals), _mark(cell, table.most)], ink)
    _white_lines(axes, means.shape)
    axes.tick_params(length=0, which="both")
    return drawn


def _write(axes: Any, at: tuple[int, int], lines: list[str], ink: str) -> None:
    """The lines of a cell, those that are not empty, about its middle; the first is large."""
    shown = [line for line in lines if line]
    for i, line in enumerate(shown):
        axes.annotate(line, at, xytext=(0, 9.5 * ((len(shown) - 1) / 2 - i)),
                      textcoords="offset points", color=ink, fontsize=7 if i else 9,
                      weight="normal" if i else "bold", ha="center", va="center")  # fmt: skip


def _mark(cell: Cell, most: int) -> str:
    """What a mean does not tell: runs that diverged or are missing."""
    n = len(cell.values)
    marks = [f"†{cell.diverged}"] * bool(cell.diverged) + [f"n={n}"] * (0 < n < most)
    return " ".join(marks)


def _heat_note(table: Table) -> str:
    parts = ["mean over runs"]
    if table.most > 1:
        parts[0] += f" (n={table.most}) and half of its 95 % t-interval"
    if any(cell.diverged for cell in table.cells):
        parts.append("† runs that diverged, counted as the worst value")
    if any(0 < len(cell.values) < table.most for cell in table.cells):
        parts.append("n= where runs are missing")
    if any(cell.mean is None for cell in table.cells):
        parts.append("hatched: nothing to show")
    return "; ".join(parts)


def readable_on(color: Sequence[float]) -> str:
    """White or black, whichever stands out more from an sRGB colour in [0, 1]."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in color[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    # WCAG's contrast with white falls below that with black from here on.
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def strip_chart(results: Results, metric: str, path: Path) -> None:
    """Draw every run as a dot, since the mean of two camps is a place where no run is.

    Args:
        results: of the study.
        metric: along x; rows are levels of the first axis, lanes and colours of the second,
            panels of all others.
        path: the PNG to write.
    """
    table = tabulate(results, metric)
    lanes = len(table.columns.levels)
    wide = {1: 7.0, 2: 4.3}.get(len(table.panels), 2.8)
    lane = 0.13 if lanes > 1 else 0.3
    colors, span = _lane_colors(table.columns.labels), _span(table)
    size = (wide, len(table.rows.levels) * (lane * lanes + 0.1))
    legend = _legend_rows(table, wide * min(2, len(table.panels))) if lanes > 1 else 0
    above = 0.2 * legend + 0.15 * (legend > 0)
    figure, frames = _panels(table, size, ("", _strip_note(table)), 0.55, above=above)
    for axes, panel in frames:
        _strip(axes, panel, colors)
        axes.set_xlim(span)
        axes.set_ylim(len(table.rows.levels) - 0.5, -0.5)
        axes.set_xlabel(title_of(metric), fontsize=9, color=_INK)
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="x", labelsize=8, colors=_PALE)
    if legend:
        _lane_legend(figure, table, colors, legend)
    figure.savefig(path, dpi=DPI)


def _strip_note(table: Table) -> str:
    note = "a dot is a run; the upright bar is the mean, the line its 95 % t-interval"
    if any(cell.fell.any() for cell in table.cells):
        note += "; a cross is a run that diverged, counted as the worst value"
    return note


def _strip(axes: Any, panel: Panel, colors: Sequence[Any]) -> None:
    for i in range(0, len(panel.cells), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="0.965", linewidth=0, zorder=0)
    lanes = len(colors)
    for (column, row), cell in _places(panel):
        y, color = row + ((column + 0.5) / lanes - 0.5) * 0.84, colors[column]
        values, fell = cell.values, cell.fell
        if cell.mean is None:
            continue
        if len(values) > 1:
            axes.plot([cell.mean.low, cell.mean.high], [y, y], color=color, linewidth=1.2, zorder=2)
        axes.plot(cell.mean.value, y, "|", color=_INK, markersize=8, markeredgewidth=1.6, zorder=4)
        dots = {"color": color, "linestyle": "", "zorder": 3}
        axes.plot(values[~fell], np.full((~fell).sum(), y), marker="o", markersize=4.5, alpha=0.75,
                  markeredgecolor="white", markeredgewidth=0.5, **dots)  # fmt: skip
        axes.plot(values[fell], np.full(fell.sum(), y), marker="x", markersize=5, clip_on=False,
                  **dots)  # fmt: skip


def _span(table: Table) -> tuple[float, float]:
    """From the least run to the largest, and 0: an interval of two runs must not set the scale."""
    values = np.concatenate([cell.values for cell in table.cells] + [np.zeros(1)])
    pad = 0.03 * (np.ptp(values) or 1.0)
    return float(values.min() - pad), float(values.max() + pad)


def _lane_colors(labels: Sequence[str]) -> list[Any]:
    """A sequence for sizes, hues for kinds."""
    from matplotlib import colormaps

    if len(labels) <= len(_HUES) and not all(_is_number(label) for label in labels):
        return list(_HUES[: len(labels)])
    places = np.linspace(0, 0.88, len(labels)) if len(labels) > 1 else [0.25]
    return [colormaps["viridis"](x) for x in places]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _legend_rows(table: Table, wide: float) -> int:
    """Lines that the names of the columns take over panels of so many inches and their labels."""
    labels = (table.columns.title, *table.columns.labels)
    longest = max(_inches(label, 9) for label in labels)
    return math.ceil(len(labels) * (longest + 0.4) / (wide + 1))


def _lane_legend(figure: Any, table: Table, colors: Sequence[Any], rows: int) -> None:
    """Along the upper edge; the title stands before the dots, as if it were one of them."""
    from matplotlib.lines import Line2D

    labels = (table.columns.title, *table.columns.labels)
    dots = [Line2D([], [], color=c, marker="o", linestyle="", markersize=6) for c in colors]
    dots = [Line2D([], [], linestyle=""), *dots]
    figure.legend(dots, labels, loc="upper left", ncols=math.ceil(len(labels) / rows),
                  frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1.2,
                  borderaxespad=0.3)  # fmt: skip


def effects_chart(effects: Sequence[Effect], path: Path) -> None:
    """Draw the share of the variance that each axis, each interaction and chance explain.

    Args:
        effects: in any order; the residual comes last.
        path: the PNG to write.
    """
    ordered = sorted(effects, key=lambda e: (is_residual(e), -e.share.value))
    height = 0.34 * len(ordered) + 0.9
    left = 0.2 + max(_inches(effect_name(effect), 9) for effect in ordered)
    width = left + 5.5
    figure = _figure(width, height)
    axes = figure.add_axes((left / width, 0.6 / height, 5.3 / width, 1 - 0.7 / height))
    ends = [_ends(effect.share) for effect in ordered]
    right = max([high for _, high in ends] + [0.1])
    for y, (effect, (low, high)) in enumerate(zip(ordered, ends, strict=True)):
        value, color = max(0.0, effect.share.value), "0.7"
        if not is_residual(effect):
            joint = len(effect.factors) > 1 or effect.factors == HIGHER
            color = _HUES[4] if joint else _HUES[0]
        axes.barh(y, value, 0.66, color=color)
        axes.plot([low, high], [y, y], color=_INK, linewidth=1.2, marker="|", markersize=5)
        axes.text(high + 0.015 * right, y, f"{value:.0%}", va="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(ordered)), [effect_name(e) for e in ordered], fontsize=9)
    axes.set(xlim=(0, 1.1 * right), ylim=(len(ordered) - 0.5, -0.5))
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])  # whole percents
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("share of the variance between runs", fontsize=9, color=_INK)
    axes.tick_params(axis="x", labelsize=8, colors=_PALE)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=DPI)


def is_residual(effect: Effect) -> bool:
    """Whether it is what no axis explains."""
    return effect.factors in CHANCE


def effect_name(effect: Effect) -> str:
    """Its axes without their sections: "size x optimizer"."""
    if is_residual(effect):
        return "chance (the seed)"
    titles = (
        " ".join(p.rpartition(".")[2] for p in factor.split("+")) for factor in effect.factors
    )
    return " × ".join(titles)  # noqa: RUF001


def _ends(share: Estimate) -> tuple[float, float]:
    """Of the interval, without the part that no share could have."""
    low, high = max(0.0, share.low), min(1.0, share.high)
    return min(low, share.value), max(high, share.value)


def _figure(width: float, height: float) -> Any:
    # pyplot would open a window system and keep every figure alive; the object API does neither.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _panels(
    table: Table,
    size: tuple[float, float],
    words: tuple[str, str],
    below: float,
    *,
    above: float = 0.35,
    right: float = 0.15,
) -> tuple[Any, Frames]:
    """A figure with axes for each panel, in as many columns as fit; the rows have their names.

    All places are reckoned in inches: a solver takes seconds for as many axes, and gives up where
    there is little room.

    Args:
        table: whose panels these are.
        size: (width, height) of a panel without its labels.
        words: above the panels, and below.
        below: room for what stands under each panel.
        above: room over the first row, and over each.
        right: room beside the last column.
    """
    (wide, tall), gap = size, 0.2
    labels = (*table.rows.labels, table.rows.title)
    left = 0.2 + max(_inches(label, 9) for label in labels)
    most = max(1, int((_WIDTH - left - right + gap) / (wide + gap)))
    rows = math.ceil(len(table.panels) / most)
    columns = math.ceil(len(table.panels) / rows)  # so that rows are about equally full
    width = left + columns * (wide + gap) - gap + right
    width = max(width, _inches(words[0], 10) + 0.3, 4.5)
    note = textwrap.wrap(words[1], int(width / 0.063))
    height = above + rows * (0.3 + tall + below) + 0.15 * len(note) + 0.12
    figure = _figure(width, height)
    figure.text(0.12 / width, 1 - 0.1 / height, words[0], fontsize=10, weight="bold", color=_INK,
                va="top")  # fmt: skip
    figure.text(0.12 / width, 0.1 / height, "\n".join(note), fontsize=8, color=_PALE)
    frames = []
    for i, panel in enumerate(table.panels):
        row, column = divmod(i, columns)
        x, top = left + column * (wide + gap), above + row * (0.3 + tall + below) + 0.3
        axes = figure.add_axes((x / width, 1 - (top + tall) / height, wide / width, tall / height))
        axes.spines[:].set_visible(False)
        axes.set_title(panel.title, fontsize=10, color=_INK)
        _label_rows(axes, table, column == 0)
        frames.append((axes, panel))
    return figure, frames


def _inches(text: str, points: float) -> float:
    """Width of a line of text."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=points).get_extents().width) / 72 if text else 0.0


def _places(panel: Panel) -> Iterator[tuple[tuple[int, int], Cell]]:
    """Each cell with its (x, y)."""
    for y, row in enumerate(panel.cells):
        for x, cell in enumerate(row):
            yield (x, y), cell


def _label_rows(axes: Any, table: Table, first: bool) -> None:
    """Names of the rows under that of their axis, at the left of the figure only."""
    labels = table.rows.labels if first else []
    axes.set_yticks(range(len(table.rows.levels)), labels or [""] * len(table.rows.levels),
                    fontsize=9, color=_INK)  # fmt: skip
    axes.tick_params(axis="y", length=0)
    if first:
        axes.annotate(table.rows.title, (0, 1), xycoords="axes fraction", xytext=(-4, 6),
                      textcoords="offset points", ha="right", fontsize=9, color=_PALE)  # fmt: skip


def _white_lines(axes: Any, shape: tuple[int, ...]) -> None:
    """Between the cells."""
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
