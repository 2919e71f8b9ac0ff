"""Which runs a study consists of: axes, their levels, cells and replicates. Pure; nothing runs.

A *cell* is one level of each axis; its *replicates* differ in `train.rng_seed` alone. Replicates
are the outermost loop and the cells of each are shuffled, so that a study that is stopped early
has run all levels about as often.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from scipy.stats import qmc

from ganray.config import CONTENT, SECTIONS, Config, Reals, require
from ganray.config_json import flatten, without_secrets

OPTIMIZER, RATE, SEED = "optimizer", "rate", "train.rng_seed"
"""Names of axes that are no single field, and the field that replicates differ in."""

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "beta1": 0.0, "lr": 100.0},
    "momentum": {"name": "sgd", "beta1": 0.9, "lr": 10.0},
    "rmsprop": {"name": "rmsprop", "lr": 3.0},
    "adam": {"name": "adam", "beta1": 0.9, "beta2": 0.999, "lr": 1.0},
    "adam-0.5": {"name": "adam", "beta1": 0.5, "beta2": 0.999, "lr": 3.0},
    "adam-0": {"name": "adam", "beta1": 0.0, "beta2": 0.999, "lr": 3.0},
    "adamw": {"name": "adamw", "beta1": 0.9, "beta2": 0.999, "lr": 1.0},
    "lion": {"name": "lion", "beta1": 0.9, "beta2": 0.99, "lr": 0.1},
}
"""Levels of the axis `optimizer`; `lr` is a factor on the preset's rates, which are those of Adam
with its momentum of 0.9. Of 0.1, 0.3, 1 and 3 times the best for an MNIST MLP with normal latents
(one run each): what has no momentum bears three times Adam's rate."""

Order = Literal["grid", "random", "sobol"]


@dataclass(frozen=True)
class Level:
    """One setting that is compared with others."""

    label: str
    """What it is called in tables, e.g. "uniform centred"."""
    settings: Mapping[str, Any]
    """Fields of the config, by dotted names, or `rate`, a factor on both learning rates."""


@dataclass(frozen=True)
class Axis:
    """What is varied: one field, several at once, or the optimizer."""

    name: str
    """E.g. "latent.size", or "latent.distribution+latent.scaling"."""
    levels: tuple[Level, ...]
    """Of a range, those that were tried."""
    range: tuple[float, float] | None = None
    """Of a number that a search may choose: least and most; drawn evenly in its logarithm."""
    whole: bool = False
    """Whether the numbers of the range are whole."""
    shows_others: bool = False
    """Whether levels differ in what images show; then each is judged by images of its own."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Of its levels."""
        return tuple(level.label for level in self.levels)

    @property
    def title(self) -> str:
        """The name for people: "distribution scaling"; of loss.name, "loss"."""
        parts = [part.rpartition(".") for part in self.name.split("+")]
        return " ".join(section if last in ("name", "kind") else last for section, _, last in parts)

    @property
    def fields(self) -> set[str]:
        """What it is named by."""
        return set(self.name.split("+"))

    @property
    def learns_others(self) -> bool:
        """Whether levels differ in how many images are learned, or in which form."""
        return not self.shows_others and not _HELD.isdisjoint(self.fields)

    def level(self, value: str | float) -> Level:
        """The level of this label, or of this number; pbt's numbers can leave the range."""
        if self.range is None:
            return next(level for level in self.levels if level.label == value)
        low, high = self.range
        number = min(max(float(value), low), high)
        label = str(round(number)) if self.whole else f"{number:.3g}"
        return Level(label, {self.name: int(label) if self.whole else float(label)})

    @property
    def samples(self) -> tuple[Level, ...]:
        """Levels that keep all rules only if every one does: of a range its ends.

        Of whole numbers the second, too: no multiple, where multiples are asked for.
        """
        if self.range is None:
            return self.levels
        low, high = self.range
        return tuple(map(self.level, (low, low + 1, high) if self.whole else (low, high)))

    def with_level(self, level: Level) -> Axis:
        """The axis with a level that a search has tried, in the order of the numbers."""
        known = {one.label: one for one in (*self.levels, level)}
        return replace(self, levels=tuple(sorted(known.values(), key=lambda one: float(one.label))))


@dataclass(frozen=True)
class Trial:
    """One run of the study."""

    name: str
    """Of the run: its folder and its MLflow run."""
    label: str
    """The name without the study's, for legends."""
    levels: tuple[str, ...]
    """A label for each axis."""
    rng_seed: int
    settings: Mapping[str, Any]
    """Fields of the config that differ from the base, by dotted names."""

    def config(self, base: Config) -> Config:
        """The whole config of this run.

        Raises:
            ValueError: these settings do not go together.
        """
        return with_settings(replace(base, name=self.name), self.settings)


@dataclass(frozen=True)
class Study:
    """Axes and the runs that fill them."""

    name: str
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    """In the order in which they are run."""

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Those that have runs, as labels, in the order of the axes' levels."""
        wanted = {trial.levels for trial in self.trials}
        return [
            cell for cell in itertools.product(*(a.labels for a in self.axes)) if cell in wanted
        ]

    def with_trial(self, trial: Trial, levels: Sequence[Level]) -> Study:
        """The study with a run that a search has begun, or a member that changed its levels."""
        axes = [
            axis.with_level(level) if axis.range else axis
            for axis, level in zip(self.axes, levels, strict=True)
        ]
        trials = {one.name: one for one in (*self.trials, trial)}
        return replace(self, axes=tuple(axes), trials=tuple(trials.values()))

    def save(self, folder: Path) -> None:
        """Write `study.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps(asdict(self), indent=1))
        part.replace(folder / FILE)


FILE = "study.json"


def load(folder: Path) -> Study:
    """Read what `Study.save` wrote."""
    values = json.loads((folder / FILE).read_text())
    axes = [
        Axis(
            **axis
            | {
                "levels": tuple(Level(**level) for level in axis["levels"]),
                "range": axis["range"] and tuple(axis["range"]),
            }
        )
        for axis in values["axes"]
    ]
    trials = [Trial(**trial | {"levels": tuple(trial["levels"])}) for trial in values["trials"]]
    return Study(values["name"], tuple(axes), tuple(trials))


def parse_axis(text: str, base: Config, read: Callable[[str, str], Any]) -> Axis:
    """An axis from "FIELD=VALUE,VALUE,..." or "FIELD+FIELD=VALUE+VALUE,...".

    Args:
        text: as typed. `optimizer` stands for named optimizers with rates of their own, and
            `rate` for factors on both learning rates. "FIELD=LEAST..MOST" is a range.
        base: the config whose fields are varied.
        read: (field, text) -> the value, of the field's type.

    Raises:
        ValueError: no such field or level, a field that runs must share, a level twice, or none.
    """
    name, equals, values = text.partition("=")
    fields, known = name.split("+"), {*flatten(base), OPTIMIZER, RATE}
    for field in fields:
        _check_varies(text, field, known)
    if _is_range(values):
        return _range(text, name, values, read)
    levels = [_level(text, fields, value, base, read) for value in values.split(",") if value]
    labels = _shortest([level.label for level in levels])
    levels = [replace(level, label=label) for level, label in zip(levels, labels, strict=True)]
    if not equals or len(set(labels)) < len(labels) or not labels:
        raise ValueError(
            f"sweep.axis={text} must be FIELD=VALUE,VALUE,... with values that differ;"
            " for example --sweep.axis latent.size=1,10,100"
        )
    return Axis(name, tuple(levels), shows_others=not _SHOWN.isdisjoint(fields))


_PLAIN = {"latent.scaling": "raw", "latent.offset": "0", "data.root": "null"}
"""Values that a label leaves out."""
_ONCE = {
    "evaluation": "how runs are measured",
    "ray": "where they run, which changes nothing of what is learned",
    "tracking": "where their figures go",
}
VARIED = (*(s for s in SECTIONS if s not in _ONCE), OPTIMIZER, RATE)
_SHOWN, _HELD = (
    {f"data.{field}" for field in fields} for fields in (CONTENT, Reals.__annotations__)
)


def _check_varies(text: str, field: str, known: Set[str]) -> None:
    section = field.partition(".")[0]
    if field == SEED:
        raise ValueError(f"sweep.axis={text}: {SEED} makes the replicates; use --sweep.seeds")
    if section in _ONCE:
        raise ValueError(
            f"sweep.axis={text}: {section} says {_ONCE[section]}, and is the same for all runs of a"
            f" study; give --{field} a value of its own instead"
        )
    if field not in known or section not in VARIED:
        raise ValueError(
            f"sweep.axis={text}: {field!r} is not a field that can be varied; name one of"
            f" {', '.join(f'{section}.*' for section in VARIED[:-2])}, {OPTIMIZER} or {RATE}"
        )


def judged_alike(base: Config, axes: Sequence[Axis]) -> tuple[Config, list[Axis]]:
    """The base, whose own images judge all runs, also those that learn others; and the axes.

    So runs on fewer images, smaller or mirrored ones are compared with the same reals, through the
    same classifier (Karras et al. 2020, "Training GANs with limited data", do so for FID). Only
    where an axis says what images show, those of its levels are judged by their own. Where squares
    are cut from images, the size of these is such an axis, too.
    """
    cut = base.data.crop or any("data.crop" in axis.fields for axis in axes)
    if cut:
        axes = [a if "data.size" not in a.fields else replace(a, shows_others=True) for a in axes]
    named = {field for axis in axes if axis.learns_others for field in axis.fields}
    fields = [field.removeprefix("data.") for field in sorted(_HELD & named)]
    held = {field: getattr(base.data, field) for field in fields}
    reals = cast(Reals, held | base.evaluation.reals)
    return replace(base, evaluation=replace(base.evaluation, reals=reals)), list(axes)


def _is_range(values: str) -> bool:
    """Whether it is two numbers; paths may hold dots as well."""
    try:
        return len([float(end) for end in values.split("..")]) > 1
    except ValueError:
        return False


def _range(text: str, name: str, values: str, read: Callable[[str, str], Any]) -> Axis:
    if name in _SHOWN | _HELD:
        raise ValueError(
            f"sweep.axis={text}: shards are made before a run begins, so name the values of {name}"
        )
    ends = [_rate(v) if name == RATE else read(name, v) for v in values.split("..")]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 < ends[0] < ends[1]:
        raise ValueError(
            f"sweep.axis={text} must be FIELD=LEAST..MOST with two positive numbers, the first one"
            " smaller; for example --sweep.axis rate=0.1..10"
        )
    return Axis(name, (), (ends[0], ends[1]), all(isinstance(end, int) for end in ends))


def _level(
    text: str, fields: Sequence[str], value: str, base: Config, read: Callable[[str, str], Any]
) -> Level:
    values = value.split("+") if len(fields) > 1 else [value]
    if len(values) != len(fields):
        raise ValueError(
            f"sweep.axis={text}: {value!r} must hold {len(fields)} values joined by +, one for each"
            f" of {', '.join(fields)}"
        )
    settings: dict[str, Any] = {}
    for field, one in zip(fields, values, strict=True):
        if field == OPTIMIZER:
            settings |= _optimizer(one, base)
        elif field == RATE:
            settings[RATE] = _rate(one)
        else:
            found = read(field, one)
            if field == "data.root" and found and without_secrets(found) != found:
                raise ValueError(
                    f"sweep.axis: data.root={without_secrets(found)}: a study would keep the"
                    " password or signature; make one of each by --data.root, which does not"
                )
            settings[field] = str(found) if isinstance(found, Path) else found
    named = zip(fields, values, strict=True)
    shown = [
        "all" if field == "data.images" and settings[field] is None else one
        for field, one in named
        if _PLAIN.get(field) != one
    ]
    return Level(" ".join(shown) or value, settings)


def _shortest(labels: list[str]) -> list[str]:
    """Paths by their last part, where that tells them apart."""
    short = [" ".join(word.rpartition("/")[2] or word for word in one.split()) for one in labels]
    return short if len(set(short)) == len(set(labels)) else labels


def _optimizer(name: str, base: Config) -> dict[str, Any]:
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"sweep.axis: optimizer={name!r} is not one of {known}")
    recipe = dict(OPTIMIZERS[name])
    factor = recipe.pop("lr")
    rates = {f"lr_{net}": getattr(base.optimizer, f"lr_{net}") * factor for net in "GD"}
    return {f"optimizer.{field}": value for field, value in (recipe | rates).items()}


def _rate(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    require("sweep.axis: rate", text, "be a positive number", 0 < factor < math.inf)
    return factor


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with these fields, by dotted names, and `rate` on its learning rates.

    Raises:
        ValueError: they do not go together.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, field = name.partition(".")
        if field:
            sections.setdefault(section, {})[field] = value
    if cache := sections.get("data", {}).get("cache"):  # a study is JSON, which has no paths
        sections["data"]["cache"] = Path(cache)
    parts = {s: replace(getattr(config, s), **values) for s, values in sections.items()}
    if factor := settings.get(RATE):
        optimizer = parts.get("optimizer", config.optimizer)
        parts["optimizer"] = replace(
            optimizer, lr_G=optimizer.lr_G * factor, lr_D=optimizer.lr_D * factor
        )
    return replace(config, **parts)


def plan(
    name: str,
    axes: Sequence[Axis],
    seeds: int,
    *,
    order: Order = "grid",
    cells: int | None = None,
    first_seed: int = 0,
) -> Study:
    """All runs of a study, in the order in which they are to be run.

    Args:
        name: of the study.
        axes: what is varied.
        seeds: replicates of each cell.
        order: grid: all cells. random, sobol: some of them, drawn evenly; Sobol's sequence also
            takes each level about as often.
        cells: how many, of random and sobol.
        first_seed: `train.rng_seed` of the first replicate.

    Raises:
        ValueError: two axes set one field, or there are fewer cells than are wanted.
    """
    _check_axes(axes)
    for axis in axes:
        if axis.range:
            raise ValueError(
                f"sweep.axis: the range of {axis.name} is for searches; name its values, or use"
                " --sweep.design tpe or pbt"
            )
    chosen = [list(cell) for cell in itertools.product(*(axis.levels for axis in axes))]
    if order != "grid":
        if cells is None or not 0 < cells <= len(chosen):
            raise ValueError(
                f"sweep.cells={cells} must lie in 1 .. {len(chosen)}, the number of cells of the"
                f" whole grid, with sweep.design={order}"
            )
        chosen = _some(axes, cells, order, first_seed)
    trials = []
    for seed in range(first_seed, first_seed + seeds):
        shuffled = np.random.default_rng([first_seed, seed]).permutation(len(chosen))
        trials += [trial(name, chosen[i], seed) for i in shuffled]
    if twice := [n for n, count in Counter(t.name for t in trials).items() if count > 1]:
        raise ValueError(
            f"sweep.axis: two levels give runs of one name, {twice[0]}, for which only letters and"
            " digits count; name them otherwise"
        )
    return Study(name, tuple(axes), tuple(trials))


def _check_axes(axes: Sequence[Axis]) -> None:
    seen: dict[str, str] = {}
    for axis in axes:
        for field in {field for level in axis.levels for field in level.settings}:
            if field in seen:
                raise ValueError(
                    f"sweep.axis: {field} is set by both {seen[field]} and {axis.name}; leave one"
                    " out, or join their fields by +"
                )
            seen[field] = axis.name


def _some(axes: Sequence[Axis], count: int, order: Order, seed: int) -> list[list[Level]]:
    sizes = [len(axis.levels) for axis in axes]
    if order == "random":
        picked = np.random.default_rng(seed).permutation(math.prod(sizes))[:count]
        indices = np.array(np.unravel_index(picked, sizes)).T
    else:
        indices = _sobol(sizes, count, seed)
    return [[axis.levels[i] for axis, i in zip(axes, row, strict=True)] for row in indices]


def _sobol(sizes: Sequence[int], count: int, seed: int) -> np.ndarray:
    """The first `count` different cells that the sequence comes to: int64 (count, axes)."""
    sequence, found = qmc.Sobol(len(sizes), rng=seed), {}
    while len(found) < count:
        for point in sequence.random(256):
            found.setdefault(tuple((point * sizes).astype(int)), None)
    return np.array(list(found))[:count]


def trial(study: str, levels: Sequence[Level], seed: int) -> Trial:
    """One run: these levels with this seed."""
    settings = {key: value for level in levels for key, value in level.settings.items()}
    label = "-".join(_plain(level.label) for level in levels)
    label = f"{label}-s{seed}" if label else f"s{seed}"
    names = tuple(level.label for level in levels)
    return Trial(f"{study}.{label}", label, names, seed, settings | {SEED: seed})


def _plain(label: str) -> str:
    """A label as part of a run's name, which allows few characters."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in label)
