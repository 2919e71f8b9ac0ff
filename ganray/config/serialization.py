"""A config as JSON values or dotted names, and back; which fields may change when a run resumes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from ganray.config.schema import SECTIONS, Config, fields_where
from ganray.errors import UserError
from ganray.log import HIDDEN, redact


def flatten(config: Config) -> dict[str, Any]:
    """Return the config by dotted names, e.g. ``{"latent.size": 100}``, as JSON values."""

    def leaves(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            name = prefix + key
            flat |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
        return flat

    return leaves(to_dict(config), "")


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as JSON values, with the secrets of URLs redacted; see ``from_dict``."""

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
        if name in secret and value is not None:
            return without_secrets(value)
        return str(value) if isinstance(value, Path) else value

    secret = fields_where("secret", True)
    return plain(dataclasses.asdict(config), "")


def typed(value: Any) -> str:
    """Return a JSON value as a user types it: null, true, 0.1, celeba."""
    return value if isinstance(value, str) else json.dumps(value)


def without_secrets(text: str) -> str:
    """Return a URL, or an option that ends in one, without password and query string."""
    if "://" not in text:
        return text
    address, question, _ = text.partition("?")
    return redact(address) + (question and f"?{HIDDEN}")


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config whose ``to_dict`` is `values`, but for redacted secrets.

    Raises:
        UserError: A key is unknown, or a value is invalid.
    """
    parts: dict[str, Any] = {}
    for name, value in _check_keys(Config, values, "config").items():
        section = SECTIONS.get(name)
        parts[name] = section(**_check_keys(section, value, name)) if section else value
    parts["home"] = Path(parts["home"])
    return Config(**parts)


def _check_keys(section: type, values: dict[str, Any], name: str) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(section)]
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{name}: unknown key(s) {unknown}; known: {known}")
    return values


def check_resumes(before: Config, now: Config, fixed: Set[str] = frozenset()) -> None:
    """Check that a run can resume with a config, which must train the same thing.

    Args:
        before: The run's config so far.
        now: The config to resume with.
        fixed: Dotted names of fields that must not change either, although a run alone can resume
            with other values.

    Raises:
        UserError: Fields differ that must not.
    """
    old, new, missing = flatten(before), flatten(now), "not set"
    free = fields_where("resume", "free") - fixed
    names = dict.fromkeys([*new, *old])  # parts of evaluation.reference may be in one of them only
    pairs = {k: (new.get(k, missing), old.get(k, missing)) for k in names if not _is_in(k, free)}
    if changed := {k: values for k, values in pairs.items() if values[0] != values[1]}:
        text = ", ".join(f"{k}={now} (was {was})" for k, (now, was) in changed.items())
        raise UserError(f"name={now.name} exists with other settings: {text}; use another --name")


def _is_in(name: str, fields: Set[str]) -> bool:
    """Return whether a dotted name, or the field that it is part of, is among these fields."""
    return any(name == known or name.startswith(f"{known}.") for known in fields)
