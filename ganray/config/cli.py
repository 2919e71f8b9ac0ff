"""Command line, environment and YAML to a config. The only importer of jsonargparse.

Later sources override earlier ones: preset, GANRAY_* environment variables, --config FILE, options.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ganray import log
from ganray.config import help
from ganray.config.commands import SweepConfig
from ganray.config.presets import ABOUT
from ganray.config.schema import SECTIONS, Config, RayConfig, absolute
from ganray.errors import UserError, did_you_mean
from ganray.log import redact

T = TypeVar("T")
_FIELDS = typing.get_type_hints(Config)


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
        _check_environment()
        main(sys.argv[1:])
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not received:
            raise
        print("stopped", file=sys.stderr, flush=True)
        sys.exit(128 + (received or [signal.SIGINT])[0])
    except UserError as error:
        print(redact(f"error: {' '.join(str(error).split())}"), file=sys.stderr, flush=True)
        sys.exit(2)
    except Exception:
        print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
        sys.exit(1)


def _check_environment() -> None:
    """Raise UserError for a variable that would have no effect, or another than it seems."""
    if os.environ.get("GANRAY_HOME") == "":
        raise UserError("$GANRAY_HOME is empty; name a folder, or unset it to use ~/.ganray")
    kinds = {**SECTIONS, "sweep": SweepConfig}
    known = [
        f"GANRAY_{section}__{field.name}".upper()
        for section, kind in kinds.items()
        for field in dataclasses.fields(kind)
    ]
    for name in os.environ:
        if re.match("GANRAY_[A-Z]+__", name) and name not in known:
            raise UserError(f"${name} is not an option{did_you_mean(name, known)}")


def parse(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    description: str,
    default: str,
) -> Config:
    """Return the config of a training job.

    Args:
        argv: Arguments without the program's name. A first word without dashes names a preset.
        presets: Presets by name.
        auto: Picks a preset for the hardware from the config's `ray` section, if none is named.
        description: First lines of --help.
        default: Preset whose values --help shows if none is named.

    Raises:
        UserError: One line with the option, its value and the rule.
    """
    _show_help(argv, presets, default, description, help.COMMON, {})
    return _build(_parse(argv, presets, auto, {}, {}))


def parse_sweep(
    argv: Sequence[str], presets: Mapping[str, Config], default: str, description: str
) -> tuple[Config, SweepConfig]:
    """Return what the runs of a sweep have in common, and the options of the sweep.

    Args:
        argv: As in ``parse``; `--resume` and `--power` stand for `--sweep.resume` and
            `--sweep.power`, `--sweep.axis` adds an axis.
        presets: As in ``parse``; --help lists those other than `default` by their names only.
        default: Preset if none is named.
        description: As in ``parse``.

    Raises:
        UserError: As in ``parse``.
    """
    aliases = {f"--{name}": f"--sweep.{name}" for name in ("resume", "power")}
    aliases["--sweep.axis"] = "--sweep.axis+"
    sections = {"sweep": SweepConfig}
    _show_help(argv, presets, default, description, help.COMMON_OF_SWEEPS, sections)
    values = _parse(argv, presets, lambda _: default, sections, aliases)
    config, sweep = _build(values), values["sweep"]
    if (sweep.resume or sweep.power) and not values["name"]:
        config = dataclasses.replace(config, name="")  # of the newest sweep
    return config, sweep


def parse_value(field: str, text: str) -> Any:
    """Return the typed value of a config field, e.g. 10 for ("latent.size", "10").

    Raises:
        UserError: The text is not of the field's type. Other rules are checked by the config.
    """
    section, _, name = field.partition(".")
    # With this option only, as it is called often.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument(f"--{field}", type=typing.get_type_hints(SECTIONS[section])[name])
    return _parse_args([f"--{field}={text}"], parser)[field]


def parse_command(
    argv: Sequence[str],
    kind: type[T],
    positional: Sequence[str],
    choices: Mapping[str, str],
    description: str,
) -> T:
    """Return the options of a small job: a flat dataclass, some fields of which are positional.

    Args:
        argv: Arguments without the program's name.
        kind: The dataclass.
        positional: Positional fields in order.
        choices: Values of the first positional field, with their descriptions; empty: any.
        description: First lines of --help.

    Raises:
        UserError: As in ``parse``.
    """
    if (topic := help.topic(argv)) is not None:
        _show_command_help(topic, kind, positional, choices, description)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(cast(Any, kind)):
        if field.name in positional:
            parser.add_argument(
                field.name, type=hints[field.name], nargs="?", default=field.default
            )
        else:
            parser.add_argument(f"--{field.name}", type=hints[field.name], default=field.default)
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    values = _parse_args(_normalize(argv, flags, {}), parser, instantiate=True)
    first = values[positional[0]]
    if choices and first not in choices:
        raise UserError(
            _not_one_of(positional[0], first, choices)
            if first
            else f"{positional[0]} is missing: name one of {', '.join(choices)}"
        )
    return kind(**{field: values[field] for field in hints})


def _parse(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    auto: Callable[[Config], str],
    sections: Mapping[str, type],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """Return the values of the config's fields and of the additional `sections`."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--preset")
    words = _normalize(words, _flags(), aliases)
    # The preset first, without any checks: values may be valid only together with the preset's.
    runs = [word for word in words if not word.startswith("--print_config")]
    values = _parse_args(runs, _parser(Config(), sections))
    name = values["preset"]
    if name != "auto" and name not in presets:
        raise UserError(_not_one_of("preset", name, presets))
    if name == "auto" and runs == words:
        # Looking at the hardware takes seconds, which a mistake should not cost.
        _parse_for_any(words, presets.values(), sections)
        name = auto(Config(ray=RayConfig(**vars(values["ray"]))))
    values = _parse_args(words, _parser(presets.get(name, Config()), sections), instantiate=True)
    return {field: values[field] for field in (*_FIELDS, *sections)} | {"preset": name}


def _parse_for_any(
    words: Sequence[str], bases: Iterable[Config], sections: Mapping[str, type]
) -> None:
    """Raise UserError unless the words are valid together with one of the configs."""
    errors = []
    for base in bases:
        try:
            _parse_args(words, _parser(base, sections), instantiate=True)
            return
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _show_help(
    argv: Sequence[str],
    presets: Mapping[str, Config],
    default: str,
    description: str,
    common: Sequence[str],
    sections: Mapping[str, type],
) -> None:
    """Print help and exit if --help is given, alone or with a preset, section, option or `all`.

    Raises:
        UserError: There is no such section or option.
    """
    topic = help.topic(argv)
    if topic is None:
        return
    names = (argv[0], topic.replace("_", "-"))
    name = next((word for word in names if word in presets), default)
    given: list[help.Option] = []
    for section, kind in sections.items():
        given += help.options(kind, kind(), f"{section}.")
    given += help.options(Config, dataclasses.replace(presets[name], preset=name))
    topics = dict.fromkeys(o.name.partition(".")[0] for o in given if "." in o.name)
    about = {preset: ABOUT[preset] for preset in presets}
    if topic and topic != "all" and names[1] not in presets:
        chosen = _options_about(topic, given, topics)
        what = "Options of" if topic in topics else "Option"
        text = f"{what} {topic}, with the values of the preset {name}:\n\n{help.in_full(chosen)}"
        _print_help(f"{text}\n\n{help.table(about)}" if topic == "preset" else text)
    full = topic == "all"
    if full:
        text, table, chosen = description, help.table(about), given
    else:
        own = {default: about[default]} if sections else about
        others = ", ".join(preset for preset in about if preset not in own)
        text, table = help.beginning(description), help.table(own, full=False)
        table += f"\n{log.wrap(f'and those of the other jobs: {others}', '  ', 2)}" * bool(others)
        chosen = [option for option in given if option.name in common]
    more = (
        f"{'' if full else '--help all shows more, '}--help preset the presets, --help OPTION one"
        f" option, --help SECTION one of {', '.join(topics)}. A YAML file may hold any option"
        " (--config FILE; --print_config prints one), and so may the environment:"
        " GANRAY_TRAIN__KIMG=100 is --train.kimg 100."
    )
    _print_help(
        f"usage: {_program()} [PRESET] [--OPTION VALUE ...]\n\n{help.reflow(text)}\n\n"
        f"Presets:\n{table}\n\nOptions, with the values of the preset {name}:\n"
        f"{help.one_line_each(chosen)}\n\n{log.wrap(more)}"
    )


def _show_command_help(
    topic: str,
    kind: type,
    positional: Sequence[str],
    choices: Mapping[str, str],
    description: str,
) -> NoReturn:
    """Print the help of a small job, its first screen unless a topic is given, and exit.

    Raises:
        UserError: There is no such option.
    """
    given = [option for option in help.options(kind, kind()) if option.name not in positional]
    full = topic == "all"
    if topic and not full:
        _print_help(help.in_full(_options_about(topic, given, ())))
    paragraphs = [
        f"usage: {_program()} {' '.join(map(str.upper, positional))} [--OPTION VALUE ...]",
        help.reflow(description if full else help.beginning(description)),
    ]
    if choices:
        table = help.table(choices, full=full)
        paragraphs.append(f"{positional[0].upper()} is one of:\n{table}")
    paragraphs.append(help.in_full(given) if full else f"Options:\n{help.one_line_each(given)}")
    if not full:
        paragraphs.append("--help all explains all options, --help OPTION one.")
    _print_help("\n\n".join(paragraphs))


def _options_about(
    topic: str, given: Sequence[help.Option], topics: Iterable[str]
) -> list[help.Option]:
    """Return the options of a section, or the one of that name; UserError if there is none."""
    chosen = [o for o in given if o.name == topic or o.name.startswith(f"{topic}.")]
    if not chosen:
        similar = did_you_mean(topic, [*topics, *(option.name for option in given)])
        what = f"section ({', '.join(topics)}) or option" if topics else "option"
        raise UserError(f"--help {topic}: no such {what}{similar}")
    return chosen


def _print_help(text: str) -> NoReturn:
    """Print a text and exit, silently also if the reader, such as `head`, has closed the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
    sys.exit(0)


def _program() -> str:
    return Path(sys.argv[0]).name


def _not_one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """Return the message for a value that is none of the choices, with the most similar one."""
    names = [str(choice) for choice in choices]
    return f"{name}={value} is not one of {', '.join(names)}{did_you_mean(str(value), names)}"


def _build(values: dict[str, Any]) -> Config:
    config = Config(**{name: values[name] for name in _FIELDS})
    label = f"{config.preset}-check" if config.check_discriminator else config.preset
    name = config.name or f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    storage = config.storage
    if storage and "://" not in storage:
        storage = str(absolute("storage", Path(storage)))
    home = absolute("home", config.home)
    return dataclasses.replace(config, home=home, storage=storage, name=name)


def _parser(base: Config, sections: Mapping[str, type]) -> ArgumentParser:
    parser = ArgumentParser(
        default_env=True,
        env_prefix="GANRAY",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--config", action="config")
    for name, kind in _FIELDS.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(base, name))
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
    """Return a parser's message in the words of the field, with similar names or values."""
    message = " ".join(message.split())
    if entry := re.match(r"(?:Group '(.*)' does not accept option|Option) '(.*?)'", message):
        message = f"unrecognized arguments: --{'.'.join(filter(None, entry.groups()))}"  # in a file
    if unknown := re.match(r"unrecognized arguments: (--\S+)", message):
        option = unknown[1].partition("=")[0]
        names = [name for action in parser._actions for name in action.option_strings]
        names = [name for name in names if name[2:] not in SECTIONS]
        near = difflib.get_close_matches(option, names, n=3, cutoff=0.6)
        # An abbreviation first.
        near.sort(key=lambda name: not name.startswith(option))
        similar = " or ".join(near)
        return f"{option} is not an option" + (f"; did you mean {similar}?" if similar else "")
    if group := re.match(r'Parser key "(\w+)": Unable to load config', message):
        return f"--{group[1]} is a group of options; see --help {group[1]}"
    if yaml := re.match("Problems parsing config: (.*)", message):
        return f"--config: the file is no YAML of options ({yaml[1]}); --print_config prints one"
    if file := re.match(r'Parser key "config": File does not exist: \'(.*)\'', message):
        return f"config={file[1]}: no such file"
    if lone := re.match("argument (--.*): expected one argument", message):
        return f"{lone[1].partition('/')[0]} needs a value"
    if words := re.match("unrecognized arguments: (.*)", message):
        return f"{words[1]!r} belongs to no option; options begin with --, and a value follows each"
    key, value = r'Parser key "([\w.]+)": ', "value: (.*)$"
    wrong = re.match(rf"{key}Expected a (.*?)\. Got {value}", message)
    wrong = wrong or re.match(rf"{key}Does not validate .*?\[(.*?)\].* Given {value}", message)
    if not wrong:
        return message
    name, kind, value = wrong.groups()
    if choices := re.findall(r"'([^']*)'", kind.partition("Literal[")[2]):
        return _not_one_of(name, value, choices)
    rules = {"int": "be a whole number", "float": "be a number", "bool": "be true or false"}
    rules["dict"] = """be names and values in braces: '{"name": "value"}'"""
    rule = next((rule for word, rule in rules.items() if f"'{word}'" in kind), f"be a {kind}")
    return f"{name}={value} must {rule}"
