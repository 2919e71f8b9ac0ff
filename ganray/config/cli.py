"""Command line, environment and YAML to a config. The only importer of jsonargparse.

Later sources override earlier ones: preset, GANRAY_* environment variables, --config FILE, options.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
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

from ganray import log
from ganray.config.commands import SweepConfig
from ganray.config.presets import ABOUT
from ganray.config.schema import SECTIONS, Config, RayConfig, absolute
from ganray.errors import UserError
from ganray.log import redact

T = TypeVar("T")
_FIELDS = typing.get_type_hints(Config)

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description, which contains a table."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a job's main function on the program's arguments and exit.

    A ``UserError`` is printed as one line and exits with code 2. Ctrl-C (130), SIGTERM (143)
    and SIGHUP (129, unless it is ignored, as under nohup) unwind the stack, so that open MLflow
    runs are closed. Every other exception is a bug: it keeps its traceback and exits with code 1.
    """
    log.configure()
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        sys.exit(128 + number)  # in a call of Ray's, the exit code is lost

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main(sys.argv[1:])
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not received:
            raise
        print("stopped; the same command with --name resumes", file=sys.stderr, flush=True)
        sys.exit(128 + (received or [signal.SIGINT])[0])
    except UserError as error:
        print(redact(f"error: {' '.join(str(error).split())}"), file=sys.stderr, flush=True)
        sys.exit(2)
    except Exception:
        print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
        sys.exit(1)


def parse(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    description: str,
) -> Config:
    """Return the config of a training job.

    Args:
        argv: Arguments without the program's name. A first word without dashes names a preset.
        presets: Presets by name.
        auto: Picks a preset for the hardware from the config's `ray` section, if none is named.
        description: First lines of --help.

    Raises:
        UserError: One line with the option, its value and the rule.
    """
    return _build(_parse(argv, presets, auto, description, {}, {}))


def parse_sweep(
    argv: Sequence[str], presets: Mapping[str, Config], default: str, description: str
) -> tuple[Config, SweepConfig]:
    """Return what the runs of a sweep have in common, and the options of the sweep.

    Args:
        argv: As in ``parse``; `--resume` stands for `--sweep.resume`, `--sweep.axis` adds an axis.
        presets: As in ``parse``.
        default: Preset if none is named.
        description: As in ``parse``.

    Raises:
        UserError: As in ``parse``.
    """
    aliases = {"--resume": "--sweep.resume", "--sweep.axis": "--sweep.axis+"}
    sections = {"sweep": SweepConfig}
    values = _parse(argv, presets, lambda _: default, description, sections, aliases)
    config, sweep = _build(values), values["sweep"]
    if sweep.resume and not values["name"]:
        config = dataclasses.replace(config, name="")  # of the newest sweep
    return config, sweep


def parse_value(field: str, text: str) -> Any:
    """Return the typed value of a config field, e.g. 10 for ("latent.size", "10").

    Raises:
        UserError: The text is not of the field's type. Other rules are checked by the config.
    """
    section, _, name = field.partition(".")
    parser = ArgumentParser(exit_on_error=False)  # with this option only, as it is called often
    parser.add_argument(f"--{field}", type=typing.get_type_hints(SECTIONS[section])[name])
    return _parse_args([f"--{field}={text}"], parser)[field]


def parse_command(
    argv: Sequence[str],
    kind: type[T],
    positional: Sequence[str],
    choices: Iterable[str] | None,
    description: str,
) -> T:
    """Return the options of a small job: a flat dataclass, some fields of which are positional.

    Args:
        argv: Arguments without the program's name.
        kind: The dataclass.
        positional: Positional fields in order; all but the first are optional.
        choices: Values of the first positional field; None: any.
        description: First lines of --help.

    Raises:
        UserError: As in ``parse``.
    """
    parser = ArgumentParser(
        description=description,
        usage=f"%(prog)s {' '.join(name.upper() for name in positional)} [--option VALUE ...]",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    hints = typing.get_type_hints(kind)
    for number, field in enumerate(dataclasses.fields(cast(Any, kind))):
        options = {"type": hints[field.name], "help": _field_help(field.name, kind)}
        if field.name in positional:
            parser.add_argument(field.name, **options, nargs="?" if number else None)
        else:
            parser.add_argument(f"--{field.name}", **options, default=field.default)
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    values = _parse_args(_normalize(argv, flags, {}), parser, instantiate=True)
    first = values[positional[0]]
    if choices is not None and first not in (names := list(choices)):
        raise UserError(f"{positional[0]}={first!r} is not one of {', '.join(names)}")
    return kind(**{field: values[field] for field in hints})


def _parse(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    description: str,
    sections: Mapping[str, type],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """Return the values of the config's fields and of the additional `sections`."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--preset")
    words = _normalize(words, _flags(), aliases)
    # The preset first, without any checks: values may be valid only together with the preset's.
    runs = [w for w in words if w not in ("--help", "-h") and not w.startswith("--print_config")]
    values = _parse_args(runs, _parser(Config(), description, sections))
    name = values["preset"]
    if name == "auto" and runs == words:
        name = auto(Config(ray=RayConfig(**vars(values["ray"]))))
    if name != "auto" and name not in presets:
        raise UserError(f"preset={name!r} is not one of {', '.join(presets)}")
    base = presets.get(name, Config())
    parser = _parser(base, f"{description}\n\n{_preset_table(presets)}", sections)
    values = _parse_args(words, parser, instantiate=True)
    return {field: values[field] for field in (*_FIELDS, *sections)} | {"preset": name}


def _build(values: dict[str, Any]) -> Config:
    config = Config(**{name: values[name] for name in _FIELDS})
    label = f"{config.preset}-check" if config.check_discriminator else config.preset
    name = config.name or f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, home=absolute("home", config.home), name=name)


def _parser(base: Config, description: str, sections: Mapping[str, type]) -> ArgumentParser:
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
    for name, kind in sections.items():
        parser.add_argument(f"--{name}", type=kind, default=kind())
    return parser


def _normalize(argv: Sequence[str], flags: Set[str], aliases: Mapping[str, str]) -> list[str]:
    """Replace dashes within option names and aliases, and add "true" to flags without a value."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = "--" + name[2:].replace("-", "_")
            word = aliases.get(name, name) + equals + value
        words.append(word)
        if word in flags and following.startswith("-"):
            words.append("true")
    return words


def _flags() -> set[str]:
    """Return the options that are true or false."""
    names = {name for name, kind in _FIELDS.items() if kind is bool}
    for section, kind in {**SECTIONS, "sweep": SweepConfig}.items():
        hints = typing.get_type_hints(kind)
        for name in [name for name, hint in hints.items() if typing.is_typeddict(hint)]:
            inner = typing.get_type_hints(hints.pop(name))
            hints |= {f"{name}.{key}": hint for key, hint in inner.items()}
        names |= {f"{section}.{k}" for k, v in hints.items() if v in (bool, bool | None)}
    return {f"--{name}" for name in names}


def _parse_args(
    words: Sequence[str], parser: ArgumentParser, *, instantiate: bool = False
) -> Namespace:
    """Return typed values by dotted names; `instantiate` checks them and creates dataclasses."""
    try:
        values = parser.parse_args(list(words))
        return parser.instantiate(values) if instantiate else values
    except ArgumentError as error:
        raise UserError(_readable(str(error), parser)) from error


def _readable(message: str, parser: ArgumentParser) -> str:
    """Return the message as one line, with similar names if an option is unknown."""
    message = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: (--\S+)", message)
    if not unknown:
        return message
    option = unknown[1].partition("=")[0]
    names = [name for action in parser._actions for name in action.option_strings]
    similar = " or ".join(difflib.get_close_matches(option, names, n=3, cutoff=0.6))
    return f"{option} is not an option" + (f"; did you mean {similar}?" if similar else "")


def _field_help(name: str, kind: type = Config) -> str:
    """Return the docstring under a field; jsonargparse itself finds those of nested dataclasses."""
    documented = docstring_parser.parse_from_object(kind).params
    return next((p.description or "" for p in documented if p.arg_name == name), "")


def _preset_table(presets: Mapping[str, Config]) -> str:
    width = max(map(len, presets))
    lines = [f"  {name:{width}s}  {' '.join(ABOUT[name].split())}" for name in presets]
    return "Presets (the first word):\n" + "\n".join(lines)
