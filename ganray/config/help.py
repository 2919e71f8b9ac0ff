"""The help of the jobs: a first screen with a line for each option, and topics with all details.

argparse's own help repeats choices, shows Python's types and needs 460 lines.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import docstring_parser

from ganray import log

COMMON = (
    "name",
    "home",
    "storage",
    "launcher",
    "dry_run",
    "data.source",
    "data.root",
    "data.download",
    "data.size",
    "latent.distribution",
    "latent.size",
    "network.kind",
    "loss.name",
    "loss.r1_gamma",
    "optimizer.name",
    "optimizer.lr_G",
    "optimizer.lr_D",
    "train.kimg",
    "train.batch_size",
    "ray.workers",
    "tracking.uri",
)
"""Options of training that most users need."""
COMMON_OF_SWEEPS = (
    "sweep.axis",
    "sweep.seeds",
    "sweep.design",
    "sweep.resume",
    "sweep.power",
    "name",
    "home",
    "storage",
    "dry_run",
    "data.source",
    "data.root",
    "data.size",
    "train.kimg",
    "train.batch_size",
    "ray.workers",
    "tracking.uri",
)
"""Options of sweeps that most users need."""
_SHORT = 32


class Option(NamedTuple):
    """An option as the help shows it."""

    name: str
    text: str
    """Its docstring: first the meaning, in one sentence, then details."""
    choices: tuple[str, ...]
    default: str
    """Its default, as a user would type it; '' for None."""
    unset: str
    """Meaning of None or '' according to the docstring, in a few words."""


def options(kind: type, defaults: object, prefix: str = "") -> Iterator[Option]:
    """Yield the options of a config class, with the values of `defaults`, sections included."""
    documented = docstring_parser.parse_from_object(kind).params
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in documented}
    for name, hint in typing.get_type_hints(kind).items():
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(hint):
            yield from options(cast("type", hint), default, f"{prefix}{name}.")
        else:
            choices = tuple(map(str, _choices(hint)))
            text = texts.get(name, "").replace("None: ", "null: ")  # as a user types it
            yield Option(prefix + name, text, choices, _shown(default), _unset(text))


def topic(argv: Sequence[str]) -> str | None:
    """Return the word after --help, with underscores; '' if there is none, None without --help."""
    words = [word.replace("-", "_") for word in argv]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("_h", "__help"):
            return "" if following.startswith("_") else following
        if word == "__help_all":
            return "all"
    return None


def beginning(description: str) -> str:
    """Return the paragraphs of a description up to its first examples, for the first screen."""
    paragraphs = description.split("\n\n")
    examples = [i for i, paragraph in enumerate(paragraphs) if paragraph.startswith(" ")]
    return "\n\n".join(paragraphs[: examples[0] + 1] if examples else paragraphs)


def one_line_each(given: Sequence[Option]) -> str:
    """Return a line for each option: its name, meaning, choices and default."""
    width = max(len(option.name) for option in given)
    lines = []
    for option in given:
        meaning = _first_sentence(option.text)
        if option.choices:
            meaning = f"{meaning.removesuffix('.')}: {', '.join(option.choices)}"
        default = option.default or option.unset
        default = f" [{default}]" if default else ""
        room = log.columns() - width - 6
        if room - len(default) < _SHORT and not option.default:
            default = ""
        lines.append(
            f"  --{option.name:{width}s}  {_shorten(meaning, room - len(default))}{default}"
        )
    return "\n".join(lines)


def in_full(given: Sequence[Option]) -> str:
    """Return all that there is to say about options, a paragraph for each."""
    paragraphs = []
    for option in given:
        choices = f" {' | '.join(option.choices)}" if option.choices else ""
        default = f" [{option.default}]" if option.default else ""
        paragraphs.append(log.wrap(f"--{option.name}{choices}{default}", "  ", 6))
        paragraphs.append(log.wrap(option.text, "      ", 6))
    return "\n".join(paragraphs)


def reflow(description: str) -> str:
    """Return a description with its paragraphs, but not its examples, fitted to the terminal."""
    paragraphs = description.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else log.wrap(p) for p in paragraphs)


def table(rows: Mapping[str, str], *, full: bool = True) -> str:
    """Return names and their texts; unless `full`, as much of the first sentence as fits a line."""
    width = max(map(len, rows))
    if full:
        return "\n".join(
            log.wrap(" ".join(text.split()), f"  {name:{width}s}  ", width + 4)
            for name, text in rows.items()
        )
    room = log.columns() - width - 4
    return "\n".join(
        f"  {name:{width}s}  {_shorten(_first_sentence(text), room)}" for name, text in rows.items()
    )


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<!et al)\. ", " ".join(text.split()))[0]
    return sentence.removesuffix(".") + "."


def _shorten(text: str, width: int) -> str:
    """Return a text that fits: without what is in parentheses, then cut at a word."""
    if len(text) > width:
        text = re.sub(r" \([^)]*\)", "", text)
    return textwrap.shorten(
        text, max(20, width), placeholder=" ...", break_on_hyphens=False, break_long_words=False
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    for inner in typing.get_args(hint):
        if found := _choices(inner):
            return found
    return ()


def _shown(value: object) -> str:
    if value is None or isinstance(value, list | dict):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unset(text: str) -> str:
    said = re.search(r"(?:null|Empty): (.*?)[.;](?: |$)", text)
    return said[1] if said and len(said[1]) < _SHORT else ""
