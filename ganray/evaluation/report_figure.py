"""Figure of a report: modes, scores relative to real images, samples and nearest neighbors."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ganray.evaluation.diagnosis import Diagnosis
from ganray.evaluation.suite import MetricsReport
from ganray.figures import COLORS, MAX_BARS, new_figure, sample_grid
from ganray.metrics.intervals import share_interval

_FAKE, _COLLAPSED, _REAL = COLORS[0], COLORS[1], "0.55"
_ROWS, _COLUMNS = 8, 10
"""Size of the grid of samples, with one column per mode if there are so few."""
SHOWN_PAIRS = 10
"""Number of pairs of a sample and a real image."""
_RATIOS = {
    "Fidelity": {
        "sure_share": "confident samples",
        "precision": "precision",
        "density": "density",
    },
    "Coverage": {"modes_held": "modes", "coverage": "coverage", "recall": "recall"},
    "Variety": {"vendi": "Vendi score", "effective_rank": "effective rank"},
}
"""Words for the scores that are drawn relative to the reference, by what they measure."""
_SHORT_NAME = 3
"""Characters of a name that fits below a bar or a column of images."""
_MAX_RATIO = 2.0
"""Length at which bars are cut; the number beside them is not."""


@dataclass(frozen=True)
class Page:
    """Images of the figure; the numbers come from the report."""

    title: str
    samples: np.ndarray
    """uint8 (n, H, W, 1 or 3), not selected."""
    modes: np.ndarray | None
    """Mode of each sample, int64 (n,); None without modes."""
    pairs: np.ndarray
    """uint8 (k, 2, H, W, 1 or 3): samples and the reference images nearest to each by features; or
    (k, 3, ...): the samples closest to training images, those images, and the training images
    nearest to those."""


def draw(page: Page, report: MetricsReport, diagnosis: Diagnosis, path: Path) -> None:
    """Draw the figure as a PNG."""
    figure = new_figure(14, 10.5)
    text = "\n".join(_balanced(diagnosis.text, 150))
    note = (
        f"{report.samples:,} samples and as many real images; whiskers: 95 %, of shares over new"
        " samples, of scores over new samples and new real images"
    )
    color = _COLLAPSED if diagnosis.collapsed else "black"
    figure.suptitle(f"{page.title}\n{text}", fontsize=13, color=color)
    figure.supxlabel(note, fontsize=9, color="0.4")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    numbers = rows[0].subplots(1, 2, width_ratios=(1.2, 1))
    _modes(numbers[0], report)
    _ratios(numbers[1], report)
    pictures = rows[1].subplots(1, 2, width_ratios=(1, 1.3))
    _by_mode(pictures[0], page, report.mode_names)
    _pairs(pictures[1], page)
    figure.savefig(path, dpi=100)


def _balanced(text: str, width: int) -> list[str]:
    """Return as few lines of at most this width as possible, and these of about equal length."""
    fewest = len(textwrap.wrap(text, width))
    wraps = (textwrap.wrap(text, w) for w in range(max(1, len(text) // max(1, fewest)), width + 1))
    return next(lines for lines in wraps if len(lines) == fewest)


def _modes(axes: Any, report: MetricsReport) -> None:
    """Draw the shares of the modes among samples and reference images."""
    axes.set_ylabel("share of images")
    if not report.mode_names:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no modes", ha="center", color=_REAL)
        return
    fake, real = (np.array(x) for x in (report.sample_counts, report.reference_counts))
    at = np.arange(len(fake))
    if len(fake) > MAX_BARS:
        for counts, color, name in ((real, _REAL, "real images"), (fake, _FAKE, "samples")):
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
    style, labels = {"elinewidth": 1}, ("real images", "samples")
    if max(map(len, names)) <= _SHORT_NAME:
        axes.bar(at - 0.2, real, 0.4, color=_REAL, label=labels[0])
        axes.bar(at + 0.2, shares, 0.4, yerr=ends, color=_FAKE, error_kw=style, label=labels[1])
        axes.set_xticks(at, names)
        return
    axes.barh(at - 0.2, real, 0.4, color=_REAL, label=labels[0])
    axes.barh(at + 0.2, shares, 0.4, xerr=ends, color=_FAKE, error_kw=style, label=labels[1])
    axes.set_yticks(at, names, fontsize=8)
    axes.invert_yaxis()
    axes.set(ylabel="", xlabel="share of images")


def _ratios(axes: Any, report: MetricsReport) -> None:
    """Draw scores relative to those of other reference images."""
    at, ticks, right = 0.0, {}, 1.25
    for group, names in _RATIOS.items():
        axes.text(0.01, at, group, va="center", fontsize=10, weight="bold")
        for name, words in names.items():
            result = report.results.get(name)
            if result is None or not result.reference:
                continue
            at += 1
            estimate = result.estimate
            ratios = np.array([estimate.value, estimate.low, estimate.high]) / result.reference
            value, low, high = ratios.clip(max=_MAX_RATIO)
            right = max(right, high + 0.25)  # room for the text beside the bar
            axes.barh(at, value, 0.7, color=_FAKE, alpha=0.5)
            axes.errorbar(value, at, xerr=[[value - low], [high - value]], color=_FAKE)
            axes.text(high + 0.02, at, f"{ratios[0]:.0%}", va="center", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
            ticks[at] = words
        at += 1.3
    axes.axvline(1, color=_REAL, linestyle="--", zorder=0)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(at - 0.7, -0.8)
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:.0%}")
    axes.set(xlim=(0, right), xlabel="share of the score of as many other real images")
    axes.set_title("scores relative to real images", fontsize=11)


def _by_mode(axes: Any, page: Page, names: tuple[str, ...]) -> None:
    """Draw one column of samples per mode, or samples ordered by mode if there are many."""
    if page.modes is None or len(names) > _COLUMNS:
        count = len(page.samples)
        order = np.arange(count) if page.modes is None else np.argsort(page.modes, kind="stable")
        picked = order[np.linspace(0, count - 1, min(count, _ROWS * _COLUMNS)).astype(int)]
        _show(axes, page.samples[picked], _COLUMNS, "samples" + (", by mode" if names else ""))
        return
    grid = np.full((_ROWS, len(names), *page.samples.shape[1:]), 225, np.uint8)  # empty: gray
    for mode in range(len(names)):
        images = page.samples[page.modes == mode][:_ROWS]
        grid[: len(images), mode] = images
    title, images = "samples, one column per mode", grid.reshape(-1, *page.samples.shape[1:])
    if max(map(len, names)) > _SHORT_NAME:
        _show(axes, images, len(names), f"{title}: {', '.join(names)}")
        return
    _show(axes, images, len(names), f"{title}; gray: no sample")
    for mode, name in enumerate(names):
        axes.text((mode + 0.5) / len(names), -0.01, name, ha="center", va="top",
                  transform=axes.transAxes)  # fmt: skip


def _pairs(axes: Any, page: Page) -> None:
    """Draw one row for each kind of image, or two if there are samples and reference images."""
    title = "samples, each above its nearest real image"
    kinds = page.pairs.swapaxes(0, 1)
    if len(kinds) == 3:
        title = "rows: samples; the training images nearest to them; those nearest to these images"
        _show(axes, np.concatenate(list(kinds)), len(page.pairs), title)
        return
    columns = -(-len(page.pairs) // 2)
    rows = [kind[start : start + columns] for start in (0, columns) for kind in kinds]
    _show(axes, np.concatenate(rows), columns, title)


def _show(axes: Any, images: np.ndarray, columns: int, title: str) -> None:
    axes.imshow(sample_grid(images, columns), interpolation="nearest")
    axes.set_title("\n".join(_balanced(title, 80)[:2]), fontsize=11)
    axes.set_axis_off()
