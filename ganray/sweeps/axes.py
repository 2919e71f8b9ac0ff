"""What a study varies: axes as people type them. Pure; nothing runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ganray.config.schema import CONTENT, SECTIONS, Config, ReferenceData, require
from ganray.config.serialization import flatten, without_secrets
from ganray.errors import UserError

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


@dataclass(frozen=True)
class Level:
    """One setting that is compared with others."""

    label: str
    """What it is called in tables, e.g. "uniform centred"."""
    overrides: Mapping[str, Any]
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
    own_reference: bool = False
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
    def shared_reference(self) -> bool:
        """Whether levels differ in how many images are learned, or in which form."""
        return not self.own_reference and not _FORMS.isdisjoint(self.fields)

    def level(self, value: str | float) -> Level:
        """The level of this label, or of this number; pbt's numbers can leave the range."""
        if self.range is None:
            return next(level for level in self.levels if level.label == value)
        low, high = self.range
        number = min(max(float(value), low), high)
        label = str(round(number)) if self.whole else f"{number:.3g}"
        return Level(label, {self.name: int(label) if self.whole else float(label)})

    @property
    def extremes(self) -> tuple[Level, ...]:
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
    alike = any(a.overrides == b.overrides for a, b in itertools.combinations(levels, 2))
    if not equals or alike or len(set(labels)) < len(labels) or not labels:
        raise UserError(
            f"sweep.axis={text} must be FIELD=VALUE,VALUE,... with values that differ;"
            " for example --sweep.axis latent.size=1,10,100"
        )
    return Axis(name, tuple(levels), own_reference=not _DEPICTS.isdisjoint(fields))


_PLAIN = {"latent.scaling": "raw", "latent.offset": "0", "data.root": "null"}
"""Values that a label leaves out."""
_ONCE = {
    "evaluation": "how runs are measured",
    "ray": "where they run, which changes nothing of what is learned",
    "tracking": "where their figures go",
}
_VARIED = tuple(section for section in SECTIONS if section not in _ONCE)
_DEPICTS, _FORMS = (
    {f"data.{field}" for field in fields} for fields in (CONTENT, ReferenceData.__annotations__)
)


def _check_varies(text: str, field: str, known: Set[str]) -> None:
    section = field.partition(".")[0]
    if field == SEED:
        raise UserError(f"sweep.axis={text}: {SEED} makes the replicates; use --sweep.seeds")
    if section in _ONCE:
        raise UserError(
            f"sweep.axis={text}: {section} says {_ONCE[section]}, and is the same for all runs of a"
            f" study; give --{field} a value of its own instead"
        )
    if field not in known or section not in (*_VARIED, OPTIMIZER, RATE):
        raise UserError(
            f"sweep.axis={text}: {field!r} is not a field that can be varied; name one of"
            f" {', '.join(f'{section}.*' for section in _VARIED)}, {OPTIMIZER} or {RATE}"
        )


def _is_range(values: str) -> bool:
    """Whether it is two numbers; paths may hold dots as well."""
    try:
        return len([float(end) for end in values.split("..")]) > 1
    except ValueError:
        return False


def _range(text: str, name: str, values: str, read: Callable[[str, str], Any]) -> Axis:
    if name in _DEPICTS | _FORMS:
        raise UserError(
            f"sweep.axis={text}: shards are made before a run begins, so name the values of {name}"
        )
    ends = [_rate(v) if name == RATE else _read(text, name, v, read) for v in values.split("..")]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 < ends[0] < ends[1]:
        raise UserError(
            f"sweep.axis={text} must be FIELD=LEAST..MOST with two positive numbers, the first one"
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
    for field, one in zip(fields, values, strict=True):
        if field == OPTIMIZER:
            overrides |= _optimizer(one, base)
        elif field == RATE:
            overrides[RATE] = _rate(one)
        else:
            found = _read(text, field, one, read)
            if field == "data.root" and found and without_secrets(found) != found:
                raise UserError(
                    f"sweep.axis: data.root={without_secrets(found)}: a study would keep the"
                    " password or signature; make one study for each, with --data.root, which is"
                    " kept without them"
                )
            overrides[field] = str(found) if isinstance(found, Path) else found
    named = zip(fields, values, strict=True)
    shown = [
        "all" if field == "data.images" and overrides[field] is None else one
        for field, one in named
        if _PLAIN.get(field) != one
    ]
    return Level(" ".join(shown) or value, overrides)


def _read(text: str, field: str, value: str, read: Callable[[str, str], Any]) -> Any:
    try:
        return read(field, value)
    except ValueError as error:
        raise UserError(f"sweep.axis={text}: {error}") from error


def _shortest(labels: list[str]) -> list[str]:
    """Paths by their last part, where that tells them apart."""
    short = [" ".join(word.rpartition("/")[2] or word for word in one.split()) for one in labels]
    return short if len(set(short)) == len(set(labels)) else labels


def _optimizer(name: str, base: Config) -> dict[str, Any]:
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
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
    """The base with the reals of all runs fixed to its own; and the axes, marked.

    So runs on fewer images, smaller or mirrored ones are compared with the same reals, through the
    same classifier (Karras et al. 2020, "Training GANs with limited data", do so for FID). Only
    where an axis says what images show (`Axis.own_reference`), its levels are judged by their own.
    Where squares are cut from images, the size of these says so, too.
    """
    cut = base.data.crop or any("data.crop" in axis.fields for axis in axes)
    if cut:
        axes = [a if "data.size" not in a.fields else replace(a, own_reference=True) for a in axes]
    named = {field for axis in axes if axis.shared_reference for field in axis.fields}
    fields = [field.removeprefix("data.") for field in sorted(_FORMS & named)]
    held = {field: getattr(base.data, field) for field in fields}
    reals = cast(ReferenceData, held | base.evaluation.reals)
    return replace(base, evaluation=replace(base.evaluation, reals=reals)), list(axes)
