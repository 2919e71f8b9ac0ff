"""The report on a trained generator: measured against the reals, drawn on a page, said in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganray.config import Config
from ganray.data.shards import Shape
from ganray.gan.latent_paths import slerp
from ganray.metrics.confidence import Estimate, bootstrap
from ganray.metrics.diversity import interpolation_jump
from ganray.metrics.extractors import Extractor, Seen
from ganray.metrics.similarity import pair_similarity
from ganray.metrics.suite import Line, Reference, Report, report
from ganray.metrics.verdict import Verdict, verdict_on
from ganray.progress import Progress
from ganray.training import journal
from ganray.training.context import local_device
from ganray.training.judge import ReferenceSet, check_fits, fitted
from ganray.training.page import Page, draw
from ganray.training.state import fixed_latents

Generate = Callable[[torch.Tensor], torch.Tensor]
"""float32 (n, latent.size + classes) -> uint8 (n, H, W, C)."""

_AT_ONCE = 250
_SHOWN = 500
"""Samples of which some are drawn on the page."""
_PATHS, _STOPS = 64, 16
"""Ways between two latents that the interpolation jump is the mean of, and images on each."""
_PAIRS = 100
"""Of images that are compared by MS-SSIM, where they are large enough."""
_LARGE = 160

JSON, PAGE = "report.json", "report.png"


@dataclass(frozen=True)
class Assessment:
    """A report and what a page of it shows."""

    report: Report
    verdict: Verdict
    page: Page

    def summary(self) -> dict[str, float]:
        """Each metric as `report/NAME`, and the ends of its interval; infinite ones left out."""
        values = {}
        for name, line in self.report.lines.items():
            ends = {"": line.fake.value, "_low": line.fake.low, "_high": line.fake.high}
            values |= {f"report/{name}{end}": float(x) for end, x in ends.items() if np.isfinite(x)}
        return values

    def tags(self) -> dict[str, str]:
        """What the run is found by in a list of runs."""
        return {
            "ganray.verdict": self.verdict.words,
            "ganray.collapse": self.verdict.kind,
            "ganray.extractor": self.report.extractor,
        }

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Write the report as JSON, with what it is about, and the page; returns both files."""
        folder.mkdir(parents=True, exist_ok=True)
        verdict = {"kind": self.verdict.kind, "words": self.verdict.words}
        content = dict(about) | {"verdict": verdict} | self.report.to_dict()
        files = [folder / JSON, folder / PAGE]
        files[0].write_text(json.dumps(content, indent=2, allow_nan=False))
        draw(self.page, self.report, self.verdict, files[1])
        return files


def assess(
    config: Config,
    generate: Generate,
    classes: int,
    reference_set: ReferenceSet,
    *,
    samples: int,
    resamples: int = 200,
    title: str,
) -> Assessment | None:
    """Compare samples of a generator with real images.

    Args:
        config: that it was trained with.
        generate: the generator.
        classes: that it can be asked for; 0 where it takes no label.
        reference_set: the images to compare with.
        samples: how many of each; fewer where there are too few images.
        resamples: behind an interval.
        title: of the page.

    Returns:
        None where there are too few images to say anything.

    Raises:
        ValueError: samples cannot be brought to the size of the reals.
    """
    count = reference_set.comparable(samples, parts=2)
    if not count:
        return None
    generate = _fitting(generate, config.latent.size + classes, reference_set.shape)
    extractor = reference_set.extractor(local_device())
    real, others = (reference_set.reals(count, part) for part in (0, 1))
    z = fixed_latents(config, "report", count, classes, torch.device("cpu"))
    looked, shown = [], []
    with Progress(3 * count, "comparing samples with reals", "images") as progress:
        reference = Reference.of(extractor, real)
        progress.add(count)
        control = extractor.look(others)
        progress.add(count)
        for part in z.split(_AT_ONCE):
            made = generate(part)
            looked.append(extractor.look(made))
            shown.append(made[: max(0, _SHOWN - sum(map(len, shown)))].cpu())
            progress.add(len(part))
    seen, shown = _joined(looked), torch.cat(shown)
    found = report(reference, seen, control, resamples=resamples)
    more = {"interpolation_jump": _jump(config, generate, classes, extractor)}
    if min(shown.shape[1:3]) > _LARGE:
        more["ms_ssim"] = _alike(shown, others[: len(shown)])
    if (saturation := _saturation(config)) is not None:
        more["D_saturation"] = saturation
    found = found.with_lines(more)
    verdict = verdict_on(found)
    nearest = _nearest(reference, seen, len(shown))
    modes = None if seen.modes is None else seen.modes[: len(shown)].cpu().numpy()
    page = Page(title, shown.numpy(), modes, real[nearest].numpy())
    return Assessment(found, verdict, page)


def _fitting(generate: Generate, inputs: int, reals: Shape) -> Generate:
    """The generator with its samples in the size of the reals, (H, W, C)."""
    height, width, channels = generate(torch.zeros(1, inputs)).shape[1:]
    check_fits((height, width, channels), reals)
    if (height, width) == reals[:2]:
        return generate
    print(f"samples of {height}x{width} are resized to {reals[0]}x{reals[1]}, as reals are")
    return lambda z: fitted(generate(z), reals)


def _joined(parts: list[Seen]) -> Seen:
    def whole(name: str) -> torch.Tensor | None:
        given = [getattr(part, name) for part in parts]
        return None if given[0] is None else torch.cat(given)

    features = whole("features")
    assert features is not None
    return Seen(features, whole("modes"), whole("confidences"))


def _nearest(reference: Reference, seen: Seen, count: int) -> torch.Tensor:
    """Rows of the reals nearest to the first samples, int64 (count,)."""
    distances = torch.cdist(seen.features[:count].double(), reference.seen.features.double())
    return distances.argmin(1).cpu()


def _jump(config: Config, generate: Generate, classes: int, extractor: Extractor) -> Line:
    """Along great circles between two latents, in the features; of one class where there are."""
    device = torch.device("cpu")
    z = fixed_latents(config, "jump", 2 * _PATHS, classes, device)
    # Both ends of a way have one label, or it would lead from class to class.
    size, steps = config.latent.size, torch.linspace(0, 1, _STOPS)
    ways = [
        torch.cat([slerp(a[:size], b[:size], steps), a[size:].expand(_STOPS, -1)], 1)
        for a, b in z.unflatten(0, (_PATHS, 2))
    ]
    images = [generate(part) for part in torch.cat(ways).split(_AT_ONCE)]
    features = torch.cat([extractor.look(part).features for part in images])
    jumps = interpolation_jump(features.unflatten(0, (_PATHS, _STOPS)))
    value = bootstrap(_mean, jumps.cpu(), rng_seed=0, resamples=200)
    return Line("interpolation_jump", value, None, None)


def _saturation(config: Config) -> Line | None:
    """Of D, as the run's journal has it; None where the run's folder is not here."""
    _, shares = journal.history(config.run_folder(), "D/saturation")
    if not len(shares):
        return None
    last = shares[-max(1, len(shares) // 10) :]
    return Line("D_saturation", bootstrap(_mean, last, rng_seed=0, resamples=200), None, None)


def _alike(fakes: torch.Tensor, others: torch.Tensor) -> Line:
    def of(images: torch.Tensor) -> torch.Tensor:
        return pair_similarity(images, min(_PAIRS, len(images) // 2), rng_seed=0)

    value = bootstrap(_mean, of(fakes), rng_seed=0, resamples=200)
    return Line("ms_ssim", value, _mean(of(others)), None)


def _mean(rows: torch.Tensor | np.ndarray) -> float:
    return float(rows.mean())


def table(found: Report) -> str:
    """The report as lines for a terminal of 100 columns."""
    rows = [("", "samples [95 %]", "reals", "perfect", "")]
    for line in found.lines.values():
        arrow = {"higher": "+", "lower": "-", "neither": " "}[line.better]
        real, perfect = (_short(value) for value in (line.real, line.perfect))
        rows.append((f"{line.name} {arrow}", line.fake.brief(), real, perfect, line.about))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    )


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def differences(a: Report, b: Report) -> dict[str, Estimate]:
    """How much higher each metric of `a` is than of `b`, with 95 % intervals.

    The two were sampled independently and measured against the same reals, so the distances of
    the ends add up as squares do (MOVER, Zou and Donner 2008). It says whether these two
    generators differ, not whether their settings do: for that, train each with several seeds.

    Raises:
        ValueError: they were looked at through different extractors.
    """
    if a.extractor != b.extractor:
        raise ValueError(
            f"reports by the extractors {a.extractor} and {b.extractor} cannot be subtracted; both"
            " must be by one; measure them together, with --against"
        )
    return {
        name: difference(a.lines[name].fake, b.lines[name].fake)
        for name in a.lines
        if name in b.lines and np.isfinite(a[name]) and np.isfinite(b[name])
    }


def difference(a: Estimate, b: Estimate) -> Estimate:
    """A - b of two independent estimates, with the interval that follows from theirs."""
    value = a.value - b.value
    below = np.hypot(a.value - a.low, b.high - b.value)
    above = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - below), float(value + above), min(a.n, b.n))
