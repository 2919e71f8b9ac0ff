"""A config as plain values, JSON or dotted names, and back; and what may change in a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganray.config.schema import SECTIONS, Config
from ganray.errors import UserError

HIDDEN = "***"
"""Stands for what is secret in a URL."""


def flatten(config: Config) -> dict[str, Any]:
    """The config as one level of dotted names, e.g. ``{"latent.size": 100}``; paths as strings."""

    def leaves(values: dict[str, Any], before: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            name = before + key
            flat |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
        return flat

    return leaves(to_dict(config), "")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values; ``from_dict`` is its inverse, but for a URL's secrets."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return str(value) if isinstance(value, Path) else value

    values = plain(dataclasses.asdict(config))
    if config.data.root is not None:
        values["data"]["root"] = without_secrets(config.data.root)
    return values


def without_secrets(text: str) -> str:
    """A URL, or an option that ends in one, as it may be kept: no password, no signature."""
    if "://" not in text:
        return text
    address, question, _ = text.partition("?")
    address = re.sub("//[^/]*@", f"//{HIDDEN}@", address, count=1)
    return address + (question and f"?{HIDDEN}")


def from_dict(values: dict[str, Any]) -> Config:
    """Rebuild a config from ``to_dict``'s output.

    Raises:
        ValueError: a key that no field has, with the known ones.
    """
    parts: dict[str, Any] = {}
    for name, value in _known(Config, values, "config").items():
        part = SECTIONS.get(name)
        parts[name] = part(**_known(part, value, name)) if part else value
    parts["home"] = Path(parts["home"])
    return Config(**parts)


def _known(kind: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{where}: unknown key(s) {unknown}; known: {known}")
    return values


# What may change when a run goes on: where and how long it runs, not what is learned.
_FREE_TO_CHANGE = ("home", "launcher", "dry_run", "log_level", "preset", "ray.")
_FREE_TO_CHANGE += (
    "tracking.",
    "train.kimg",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
)
_FREE_TO_CHANGE += ("train.keep_checkpoints", "data.root", "data.download", "data.cache")
_FREE_TO_CHANGE += ("data.residence", "data.threads", "data.verify", "evaluation.")


def check_resumes(before: Config, now: Config, keep: Sequence[str] = ()) -> None:
    """Refuse to go on with a run under a config that would learn something else.

    Args:
        before: its config so far.
        now: that it is to go on with.
        keep: those of `_FREE_TO_CHANGE` that may not change here.

    Raises:
        ValueError: the fields that differ, both values, and the way out.
    """
    old, new, unsaid = flatten(before), flatten(now), "not said"
    free = tuple(name for name in _FREE_TO_CHANGE if name not in keep)
    names = dict.fromkeys([*new, *old])  # some fields of evaluation.reals may be in one alone
    both = {k: (new.get(k, unsaid), old.get(k, unsaid)) for k in names if not k.startswith(free)}
    if changed := {k: values for k, values in both.items() if values[0] != values[1]}:
        pairs = ", ".join(f"{k}={now} (was {was})" for k, (now, was) in changed.items())
        raise UserError(f"name={now.name} exists with other settings: {pairs}; use another --name")
