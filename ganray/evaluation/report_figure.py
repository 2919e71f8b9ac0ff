"""Figure of a report: modes, precision and recall, variety, samples and nearest neighbours."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ganray.evaluation.diagnosis import Diagnosis
from ganray.evaluation.suite import MetricsReport
from ganray.figures import sample_grid
from ganray.metrics.intervals import share_interval

_FAKE, _REAL = "tab:blue", "0.55"
_BARS = 32
"""Maximum number of modes that are drawn as bars; more are drawn as curves."""
_ROWS, _COLUMNS = 8, 10
"""Size of the grid of samples, with one column per mode if there are so few."""
_NEIGHBOURS = 10
_RATIOS = ("modes_held", "sure_share", "recall", "coverage", "vendi", "effective_rank")
"""Measures of variety that are drawn relative to the reference."""


@dataclass(frozen=True)
class Page:
    """Images of the figure; the numbers come from the report."""

    title: str
    samples: np.ndarray
    """uint8 (n, H, W, 1 or 3), not selected."""
    modes: np.ndarray | None
    """Mode of each sample, int64 (n,); None without modes."""
    nearest: np.ndarray
    """uint8 (n, H, W, 1 or 3): the reference image nearest to each in feature space."""


def draw(page: Page, report: MetricsReport, diagnosis: Diagnosis, path: Path) -> None:
    """Draw the figure as a PNG."""
    # pyplot would open a window system and keep every figure alive; the object API does neither.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    text = "\n".join(textwrap.wrap(diagnosis.text, 150))
    note = (
        f"{report.samples:,} samples and as many reference images, features by {report.extractor}"
    )
    color = "tab:red" if diagnosis.collapsed else "black"
    figure.suptitle(f"{page.title}\n{text}", fontsize=13, color=color)
    figure.supxlabel(f"{note}; bars and whiskers are 95 % intervals", fontsize=9, color="0.4")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    numbers = rows[0].subplots(1, 3, width_ratios=(1.4, 1.2, 1.2))
    _modes(numbers[0], report)
    _precision_recall(numbers[1], report)
    _ratios(numbers[2], report)
    pictures = rows[1].subplots(1, 2, width_ratios=(1, 1.3))
    _by_mode(pictures[0], page, report.mode_names)
    _neighbours(pictures[1], page)
    figure.savefig(path, dpi=100)


def _modes(axes: Any, report: MetricsReport) -> None:
    """Draw the shares of the modes among samples and reference images."""
    axes.set_ylabel("share of images")
    if not report.mode_names:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no labels, so no modes", ha="center", color=_REAL)
        return
    fake, real = (np.array(x) for x in (report.sample_counts, report.reference_counts))
    at = np.arange(len(fake))
    if len(fake) > _BARS:
        for counts, color, name in ((real, _REAL, "reference"), (fake, _FAKE, "samples")):
            axes.plot(at, np.sort(counts / counts.sum())[::-1], color=color, label=name)
        axes.set_xlabel(f"the {len(fake)} modes, largest first")
    else:
        _bars(axes, report.mode_names, real / real.sum(), fake)
    held, kl = report.results["modes_held"], report.results["kl"].estimate
    axes.set_title(
        f"{held.estimate.value:g} of {held.reference:g} modes, KL {kl.brief()} nats",
        fontsize=11,
    )
    axes.legend()


def _bars(axes: Any, names: tuple[str, ...], real: np.ndarray, fake: np.ndarray) -> None:
    """Draw two bars per mode, horizontal if the names are long."""
    estimates = [share_interval(int(count), int(fake.sum())) for count in fake]
    ends = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
    shares, at = [e.value for e in estimates], np.arange(len(fake))
    style, labels = {"elinewidth": 1}, ("reference", "samples")
    if max(map(len, names)) <= 3:
        axes.bar(at - 0.2, real, 0.4, color=_REAL, label=labels[0])
        axes.bar(at + 0.2, shares, 0.4, yerr=ends, color=_FAKE, error_kw=style, label=labels[1])
        axes.set_xticks(at, names)
        return
    axes.barh(at - 0.2, real, 0.4, color=_REAL, label=labels[0])
    axes.barh(at + 0.2, shares, 0.4, xerr=ends, color=_FAKE, error_kw=style, label=labels[1])
    axes.set_yticks(at, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(ylabel="", xlabel="share of images")


def _precision_recall(axes: Any, report: MetricsReport) -> None:
    """Draw fidelity against variety."""
    for pair, marker in ((("recall", "precision"), "o"), (("coverage", "density"), "s")):
        x, y = (report.results[name] for name in pair)
        label = f"{pair[1]} over {pair[0]}"
        ends = [[[e.value - e.low], [e.high - e.value]] for e in (x.estimate, y.estimate)]
        axes.errorbar(x.estimate.value, y.estimate.value, ends[1], ends[0], color=_FAKE,
                      marker=marker, linestyle="", label=label)  # fmt: skip
        axes.plot(x.reference, y.reference, marker, color=_REAL)
    top = max(1.1, report.results["density"].estimate.high * 1.05)
    top *= 1.3  # room for the legend
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, top), xlabel="variety: recall, coverage",
             ylabel="fidelity: precision, density")  # fmt: skip
    axes.set_title("grey: other reference images", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper center", fontsize=9)


def _ratios(axes: Any, report: MetricsReport) -> None:
    """Draw measures of variety relative to the reference."""
    names = [name for name in _RATIOS if name in report.results]
    right = 1.35
    for at, name in enumerate(reversed(names)):
        result = report.results[name]
        estimate, reference = result.estimate, result.reference or 1.0
        value, low, high = (x / reference for x in (estimate.value, estimate.low, estimate.high))
        right = max(right, high + 0.25)  # room for the text beside the bar
        axes.barh(at, value, 0.6, color=_FAKE, alpha=0.5)
        axes.errorbar(value, at, xerr=[[value - low], [high - value]], color=_FAKE)
        axes.text(max(high, 0) + 0.02, at, f"{value:.0%}", va="center", fontsize=9)
    axes.axvline(1, color=_REAL, linestyle="--")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(xlim=(0, right), xlabel="relative to other reference images")
    axes.set_title("variety", fontsize=11)


def _by_mode(axes: Any, page: Page, names: tuple[str, ...]) -> None:
    """Draw one column of samples per mode, or samples ordered by mode if there are many."""
    if page.modes is None or len(names) > _COLUMNS:
        count = len(page.samples)
        order = np.arange(count) if page.modes is None else np.argsort(page.modes, kind="stable")
        picked = order[np.linspace(0, count - 1, min(count, _ROWS * _COLUMNS)).astype(int)]
        _show(axes, page.samples[picked], _COLUMNS, "samples" + (", by mode" if names else ""))
        return
    grid = np.full((_ROWS, len(names), *page.samples.shape[1:]), 255, np.uint8)  # empty: white
    for mode in range(len(names)):
        images = page.samples[page.modes == mode][:_ROWS]
        grid[: len(images), mode] = images
    title = "samples, one column per mode: " + ", ".join(names)
    _show(axes, grid.reshape(-1, *page.samples.shape[1:]), len(names), title)


def _neighbours(axes: Any, page: Page) -> None:
    columns = min(_NEIGHBOURS, len(page.samples)) // 2
    rows = [
        kind[start : start + columns]
        for start in (0, columns)
        for kind in (page.samples, page.nearest)
    ]
    _show(axes, np.concatenate(rows), columns, "samples, each above its nearest reference image")


def _show(axes: Any, images: np.ndarray, columns: int, title: str) -> None:
    axes.imshow(sample_grid(images, columns), interpolation="nearest")
    axes.set_title("\n".join(textwrap.wrap(title, 80)[:2]), fontsize=11)
    axes.set_axis_off()
