"""Axes of a sweep, parsed from the command line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ganray.config.schema import SECTIONS, Config, ReferenceData, data_fields, fields_where, require
from ganray.config.serialization import flatten, without_secrets
from ganray.errors import UserError, did_you_mean

DEFAULT_AXES = (
    "latent.distribution+latent.scaling=uniform+raw,uniform+centered,uniform+standardized,normal+raw",
    "latent.size=1,10,100",
    "optimizer=sgd,rmsprop,adam",
)
"""Axes of a sweep that names none. Consecutive distributions differ in one property: the mean, then
the spread, then the shape."""
OPTIMIZER, RATE, SEED = "optimizer", "rate", "train.rng_seed"
"""Axes that are not a single field, and the field that differs between the runs of a setting."""

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
"""Levels of the axis `optimizer`. `lr` is a factor on the preset's learning rates, which suit Adam
with beta1 0.9: the best of 0.1, 0.3, 1 and 3 times these rates for an MNIST MLP with normal latents
(one run each). Optimizers without momentum tolerate three times Adam's rate."""


@dataclass(frozen=True)
class Level:
    """One value of an axis."""

    label: str
    """Name in tables, e.g. "uniform centered"."""
    overrides: Mapping[str, Any]
    """Fields of the config, by dotted name, or `rate`, a factor on both learning rates."""


@dataclass(frozen=True)
class Axis:
    """A field that is varied, several fields together, or the optimizer."""

    name: str
    """Fields, e.g. "latent.size" or "latent.distribution+latent.scaling"."""
    levels: tuple[Level, ...]
    """Values of the axis; those tried so far if it is a range."""
    range: tuple[float, float] | None = None
    """Minimum and maximum of a number that a search draws, log-uniformly."""
    whole: bool = False
    """Whether the numbers of the range are integers."""
    own_reference: bool = False
    """Whether levels differ in the content of the images, so that each level has reference images
    of its own."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all levels."""
        return tuple(level.label for level in self.levels)

    @property
    def title(self) -> str:
        """Short name for tables, e.g. "distribution scaling", or "loss" for loss.name."""
        parts = [part.rpartition(".") for part in self.name.split("+")]
        return " ".join(section if last in ("name", "kind") else last for section, _, last in parts)

    @property
    def fields(self) -> set[str]:
        """Fields that the axis names."""
        return set(self.name.split("+"))

    @property
    def shared_reference(self) -> bool:
        """Whether levels train on different numbers or forms of the same images."""
        return not self.own_reference and not _FORMS.isdisjoint(self.fields)

    def level(self, value: str | float) -> Level:
        """Return the level of a label or number; numbers outside the range (pbt) are clipped."""
        if self.range is None:
            return next(level for level in self.levels if level.label == value)
        low, high = self.range
        number = min(max(float(value), low), high)
        label = str(round(number)) if self.whole else f"{number:.3g}"
        return Level(label, {self.name: int(label) if self.whole else float(label)})

    @property
    def extremes(self) -> tuple[Level, ...]:
        """Levels to validate in place of all others: the ends of a range.

        For integers also the second one, which fails where only multiples are valid.
        """
        if self.range is None:
            return self.levels
        low, high = self.range
        return tuple(map(self.level, (low, low + 1, high) if self.whole else (low, high)))

    def with_level(self, level: Level) -> Axis:
        """Return the axis with another tried level; levels ascend."""
        levels = {known.label: known for known in (*self.levels, level)}.values()
        return replace(self, levels=tuple(sorted(levels, key=lambda known: float(known.label))))


def parse_axis(text: str, base: Config, read: Callable[[str, str], Any]) -> Axis:
    """Return the axis of "FIELD=VALUE,VALUE,..." or "FIELD+FIELD=VALUE+VALUE,...".

    Args:
        text: Axis as typed. `optimizer` stands for named optimizers with learning rates of their
            own, `rate` for factors on both learning rates. "FIELD=MIN..MAX" is a range.
        base: Config whose fields are varied.
        read: Function from (field, text) to the value of the field's type.

    Raises:
        UserError: The field or a value does not exist or cannot be varied, or values repeat.
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
    repeated = any(a.overrides == b.overrides for a, b in itertools.combinations(levels, 2))
    if not equals or repeated or len(set(labels)) < len(labels) or not labels:
        raise UserError(
            f"sweep.axis={text} must be FIELD=VALUE,VALUE,... with distinct values;"
            " for example --sweep.axis latent.size=1,10,100"
        )
    return Axis(name, tuple(levels), own_reference=not _CONTENTS.isdisjoint(fields))


_PLAIN = {"latent.scaling": "raw", "latent.offset": "0", "data.root": "null"}
"""Values that labels leave out."""
_VARIED = tuple(
    section
    for section in SECTIONS
    if any(name.startswith(f"{section}.") for name in fields_where("sweep", "axis", "live"))
)
_CONTENTS, _FORMS = (
    {f"data.{field}" for field in data_fields(identity)} for identity in ("content", "selection")
)


def _check_varies(text: str, field: str, known: Set[str]) -> None:
    section = field.partition(".")[0]
    if field == SEED:
        raise UserError(f"sweep.axis={text}: {SEED} differs within a setting; use --sweep.seeds")
    if section in SECTIONS and (section not in _VARIED or field in fields_where("sweep", "no")):
        shared = field if section in _VARIED else section
        raise UserError(
            f"sweep.axis={text}: {shared} is shared by all runs of a sweep; give --{field} a"
            " single value instead"
        )
    if field not in known or section not in (*_VARIED, OPTIMIZER, RATE):
        raise UserError(
            f"sweep.axis={text}: {field!r} is not a field that can be varied; use one of"
            f" {', '.join(f'{section}.*' for section in _VARIED)}, {OPTIMIZER} or {RATE}"
            f"{did_you_mean(field, sorted(known))}"
        )


def _is_range(values: str) -> bool:
    """Return whether the values are numbers joined by ".."; paths may contain dots as well."""
    try:
        return len([float(end) for end in values.split("..")]) > 1
    except ValueError:
        return False


def _range(text: str, name: str, values: str, read: Callable[[str, str], Any]) -> Axis:
    if name in _CONTENTS | _FORMS:
        raise UserError(
            f"sweep.axis={text}: shards are made before runs start, so list the values of {name}"
        )
    ends = [_rate(v) if name == RATE else _read(text, name, v, read) for v in values.split("..")]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 < ends[0] < ends[1]:
        raise UserError(
            f"sweep.axis={text} must be FIELD=MIN..MAX with two positive numbers, the first one"
            " smaller; for example --sweep.axis rate=0.1..10"
        )
    return Axis(name, (), (ends[0], ends[1]), all(isinstance(end, int) for end in ends))


def _level(
    text: str, fields: Sequence[str], value: str, base: Config, read: Callable[[str, str], Any]
) -> Level:
    values = value.split("+") if len(fields) > 1 else [value]
    if len(values) != len(fields):
        raise UserError(
            f"sweep.axis={text}: {value!r} must hold {len(fields)} values joined by +, one for each"
            f" of {', '.join(fields)}"
        )
    overrides: dict[str, Any] = {}
    for field, word in zip(fields, values, strict=True):
        if field == OPTIMIZER:
            overrides |= _optimizer(word, base)
        elif field == RATE:
            overrides[RATE] = _rate(word)
        else:
            parsed = _read(text, field, word, read)
            if field == "data.root" and parsed and without_secrets(parsed) != parsed:
                raise UserError(
                    f"sweep.axis: data.root={without_secrets(parsed)}: a sweep would save the"
                    " password or signature; run one sweep for each with --data.root, which is"
                    " saved without them"
                )
            overrides[field] = str(parsed) if isinstance(parsed, Path) else parsed
    shown = [
        "all" if field == "data.images" and overrides[field] is None else word
        for field, word in zip(fields, values, strict=True)
        if _PLAIN.get(field) != word
    ]
    return Level(" ".join(shown) or value, overrides)


def _read(text: str, field: str, value: str, read: Callable[[str, str], Any]) -> Any:
    try:
        return read(field, value)
    except UserError as error:
        raise UserError(f"sweep.axis={text}: {error}") from error


def _shortest(labels: list[str]) -> list[str]:
    """Return paths by their last part where that is unique."""
    short = [" ".join(w.rpartition("/")[2] or w for w in label.split()) for label in labels]
    return short if len(set(short)) == len(set(labels)) else labels


def _optimizer(name: str, base: Config) -> dict[str, Any]:
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS) + did_you_mean(name, OPTIMIZERS)
        raise UserError(f"sweep.axis: optimizer={name!r} is not one of {known}")
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


def share_reference(base: Config, axes: Sequence[Axis]) -> tuple[Config, list[Axis]]:
    """Return the base with its reference images fixed for all runs, and the axes, marked.

    Runs on fewer, smaller or mirrored images are thus compared with the same reference images
    through the same classifier (as Karras et al. 2020, "Training GANs with limited data", do for
    FID). The levels of an axis that changes the content of images (`Axis.own_reference`) have
    reference images of their own; with random crops, `data.size` changes the content too.
    """
    if base.data.crop or any("data.crop" in axis.fields for axis in axes):
        axes = [a if "data.size" not in a.fields else replace(a, own_reference=True) for a in axes]
    named = {field for axis in axes if axis.shared_reference for field in axis.fields}
    fields = [field.removeprefix("data.") for field in sorted(_FORMS & named)]
    held = {field: getattr(base.data, field) for field in fields}
    reference = cast(ReferenceData, held | base.evaluation.reference)
    return replace(base, evaluation=replace(base.evaluation, reference=reference)), list(axes)
