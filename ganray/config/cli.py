"""From the command line, the environment and YAML to a Config. The only importer of jsonargparse.

Later beats earlier: preset, GANRAY_* environment variables, --config FILE, options.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar, cast

import docstring_parser
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from ganray.config.commands import SweepConfig
from ganray.config.schema import SECTIONS, Config, RayConfig, absolute
from ganray.errors import UserError

T = TypeVar("T")
_FIELDS = typing.get_type_hints(Config)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description, which holds a table."""


def parse(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    description: str,
) -> Config:
    """The whole config of a job.

    Args:
        argv: without the program's name. A first word without dashes names a preset.
        presets: what a preset may be called, and the config it stands for.
        auto: picks a preset for the hardware, of which the config's `ray` tells; called only where
            none was named.
        description: the first lines of --help.

    Raises:
        ValueError: one line about the option, its value and the rule.
    """
    values = _values(_normalise(argv), presets, auto, description, {})
    return _build(values)


def parse_sweep(
    argv: Sequence[str], presets: Mapping[str, Config], default: str, description: str
) -> tuple[Config, SweepConfig]:
    """What the runs of a study have in common, and how they differ.

    Args:
        argv: as `parse`; `--resume` stands for `--sweep.resume`, `--sweep.axis` adds an axis.
        presets: as `parse`.
        default: the preset where none is named.
        description: as `parse`.

    Raises:
        ValueError: one line about the option, its value and the rule.
    """
    more = {"sweep": SweepConfig}
    words = [{"--resume": "--sweep.resume"}.get(word, word) for word in argv]
    words = ["--sweep.axis+" + w[len("--sweep.axis") :] if _adds_axis(w) else w for w in words]
    values = _values(_normalise(words), presets, lambda _: default, description, more)
    config = _build(values)
    if values["sweep"].resume and not values["name"]:
        config = dataclasses.replace(config, name="")  # the newest study's
    return config, values["sweep"]


def _adds_axis(word: str) -> bool:
    return word == "--sweep.axis" or word.startswith("--sweep.axis=")


def value_of(field: str, text: str) -> Any:
    """A field's value from what was typed, e.g. 10 from ("latent.size", "10").

    Its rules are those of the config that it becomes part of.

    Raises:
        ValueError: it is not of the field's type.
    """
    section, _, name = field.partition(".")
    parser = ArgumentParser(exit_on_error=False)  # of this field alone: it is asked many times
    parser.add_argument(f"--{field}", type=typing.get_type_hints(SECTIONS[section])[name])
    return _read([f"--{field}={text}"], parser)[field]


def _values(
    words: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    description: str,
    more: Mapping[str, type],
) -> dict[str, Any]:
    """The config's parts, and those of `more`: sections of this job alone."""
    asks = {"--help", "-h"} & set(words) or any(w.startswith("--print_config") for w in words)
    early = [w for w in words if not w.startswith("--print_config") and w not in ("--help", "-h")]
    # Of the rest nothing is checked yet: it may go together only with the preset.
    first = _read(early, _parser(Config(), description, more))
    name = first["preset"]
    if name == "auto":
        name = "auto" if asks else auto(Config(ray=RayConfig(**vars(first["ray"]))))
    if name != "auto" and name not in presets:
        raise UserError(f"preset={name!r} is not one of {', '.join(presets)}")
    base = presets.get(name, Config())
    about = f"{description}\n\n{_table(presets)}"
    return _parse(words, base, about, more) | {"preset": name}


def parse_words(
    argv: Sequence[str],
    kind: type[T],
    names: Sequence[str],
    first: Iterable[str] | None,
    description: str,
) -> T:
    """The config of a small job: a flat dataclass, some fields of which are words, not options.

    Args:
        argv: without the program's name.
        kind: the dataclass.
        names: its fields that are given as words, in order; all but the first may be left out.
        first: what the first word may be; None: anything.
        description: the first lines of --help.

    Raises:
        ValueError: one line about the word or option, its value and the rule.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        description=description,
        usage=f"%(prog)s {' '.join(name.upper() for name in names)} [--option VALUE ...]",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    hints = typing.get_type_hints(kind)
    for number, field in enumerate(dataclasses.fields(cast(Any, kind))):
        about = {"type": hints[field.name], "help": _field_help(field.name, kind)}
        if field.name in names:
            parser.add_argument(field.name, **about, nargs="?" if number else None)
        else:
            parser.add_argument(f"--{field.name}", **about, default=field.default)
    words = _dashed(argv, {f"--{name}" for name, hint in hints.items() if hint is bool})
    try:
        values = vars(parser.instantiate(parser.parse_args(words)))
    except ArgumentError as error:
        raise UserError(_readable(str(error), parser)) from error
    if first is not None and values[names[0]] not in (known := list(first)):
        raise UserError(f"{names[0]}={values[names[0]]!r} is not one of {', '.join(known)}")
    return kind(**{field: values[field] for field in hints})


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a job's main: bad input ends with one clear line and exit code 2.

    Ctrl-C and SIGTERM unwind the stack, so that whoever holds an MLflow run can close it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped; the same command with --name goes on", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        if os.environ.get("GANRAY_DEBUG"):
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def _build(values: dict[str, Any]) -> Config:
    config = Config(**{name: values[name] for name in _FIELDS})
    home = absolute("home", config.home)
    what = f"{config.preset}-check" if config.check_discriminator else config.preset
    name = config.name or f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, home=home, name=name)


def _parse(
    words: Sequence[str], base: Config, description: str, more: Mapping[str, type]
) -> dict[str, Any]:
    """The config's parts, and those of `more`, checked; what is not given is the base's."""
    parser = _parser(base, description, more)
    values = _read(words, parser)
    try:
        made = vars(parser.instantiate(values))
    except ArgumentError as error:
        raise UserError(_readable(str(error), parser)) from error
    return {name: made[name] for name in (*_FIELDS, *more)}


def _read(words: Sequence[str], parser: ArgumentParser) -> Namespace:
    """Values of the right types, by dotted names; nothing else is checked."""
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        raise UserError(_readable(str(error), parser)) from error


def _parser(base: Config, description: str, more: Mapping[str, type]) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [PRESET] [--config FILE] [--section.field VALUE ...]",
        formatter_class=_HelpFormatter,
        default_env=True,
        env_prefix="GANRAY",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML or JSON file with any of these.")
    for name, kind in _FIELDS.items():
        help_text = None if name in SECTIONS else _field_help(name)
        parser.add_argument(f"--{name}", type=kind, default=getattr(base, name), help=help_text)
    for name, kind in more.items():
        parser.add_argument(f"--{name}", type=kind, default=kind())
    return parser


def _normalise(argv: Sequence[str]) -> list[str]:
    """Accept what people type, with the preset first."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--preset")
    return _dashed(words, {"--" + name for name in _flags()})


def _dashed(argv: Sequence[str], flags: Set[str]) -> list[str]:
    """Accept dashes inside names, and a bare flag for true."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):  # the last has none
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = "--" + name[2:].replace("-", "_") + equals + value
        words.append(word)
        if word in flags and following.startswith("-"):
            words.append("true")
    return words


def _flags() -> list[str]:
    """Dotted names of the fields that are true or false."""
    names = [name for name, kind in _FIELDS.items() if kind is bool]
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for name in [name for name, hint in hints.items() if typing.is_typeddict(hint)]:
            inner = typing.get_type_hints(hints.pop(name))
            hints |= {f"{name}.{key}": hint for key, hint in inner.items()}
        names += [f"{section}.{k}" for k, v in hints.items() if v in (bool, bool | None)]
    return [*names, "sweep.resume"]


def _readable(message: str, parser: ArgumentParser) -> str:
    """One line; an unknown option comes with its nearest neighbours."""
    message = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: (--\S+)", message)
    if not unknown:
        return message
    option = unknown[1].partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(option, known, n=3, cutoff=0.6)
    return f"{option} is not an option" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _field_help(name: str, kind: type = Config) -> str:
    """The docstring under a field of a dataclass; jsonargparse finds those of the sections."""
    documented = docstring_parser.parse_from_object(kind).params
    return next((p.description or "" for p in documented if p.arg_name == name), "")


def _table(presets: Mapping[str, Config]) -> str:
    width = max(map(len, presets))
    lines = [f"  {name:{width}s}  {' '.join(about.split())}" for name, about in _about(presets)]
    return "Presets (the first word):\n" + "\n".join(lines)


def _about(presets: Mapping[str, Config]) -> list[tuple[str, str]]:
    from ganray.config.presets import ABOUT

    return [(name, ABOUT[name]) for name in presets]
