"""Print a manifest of KubeRay or a script for Slurm, filled in from the command line."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from importlib import metadata
from pathlib import Path
from unicodedata import category

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import ganray
from ganray.config import cli
from ganray.config.commands import DeployConfig
from ganray.config.presets import CELEBA, MNIST, STACKED, SWEEPS
from ganray.config.schema import require
from ganray.errors import UserError
from ganray.log import redact
from ganray.sweeps.axes import parse_axis

TEMPLATES = Path(ganray.__file__).parent / "integrations" / "deploy"
_FILES = {"rayjob": "rayjob.yaml", "slurm": "slurm.sh"}
_JOBS = {
    "celeba": CELEBA,
    "mnist": MNIST | STACKED,
    "sweep": SWEEPS | CELEBA | MNIST | STACKED,
}
"""Presets of each job."""
_DNS_LABEL = r"[a-z]([a-z0-9-]*[a-z0-9])?"
_SECRET = re.compile(r"(token|secret|password|signature|sig)=", re.IGNORECASE)
_UNQUOTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that YAML cannot quote as they are."""


def deploy(options: DeployConfig) -> None:
    """Print the file.

    Raises:
        UserError: An option is missing, invalid, or holds a password.
    """
    print(render(options), end="")


def render(options: DeployConfig) -> str:
    """Return the file as a text. Every value is quoted for YAML or for a shell, or checked.

    Raises:
        UserError: As in `deploy`.
    """
    _check(options)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # the filters quote
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"yaml": partial(json.dumps, ensure_ascii=False), "shell": shlex.quote}
    return environment.get_template(_FILES[options.target]).render(
        name=options.name,
        command=_command(options),
        image=options.image,
        container=_container(options),
        nodes=options.nodes,
        gpus=options.gpus,
        cpus=options.cpus,
        storage=options.storage,
        tracking_uri=options.tracking_uri,
        ray_version=metadata.version("ray"),
    )


def _command(options: DeployConfig) -> str:
    """Return the job's command line, quoted for a shell."""
    return shlex.join(["ganray", *shlex.split(options.job), "--name", options.name])


def _container(options: DeployConfig) -> str:
    """Return the options of srun that start a container, quoted for a shell; empty for none."""
    if not options.image:
        return ""
    registry, slash, path = options.image.partition("/")
    is_registry = re.search(r"\w[.:]", registry) and "#" not in options.image
    image = f"{registry}#{path}" if slash and is_registry else options.image  # as Pyxis reads it
    mounts = f"{options.storage}:{options.storage}"
    return f" --container-image={shlex.quote(image)} --container-mounts={mounts}"


def _check(options: DeployConfig) -> None:
    """Check what only the cluster would find out, perhaps after hours in its queue."""
    for name in ("storage", "tracking_uri", *(["image"] if options.target == "rayjob" else [])):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing: {options.target} needs it; see --help")
    for name in ("job", "image", "storage", "tracking_uri"):
        value = getattr(options, name) or ""
        if redact(value) != value or _SECRET.search(value):
            raise UserError(
                f"--{name} contains a password or token, which the file would show; leave it out,"
                " and give it to the cluster as the file says"
            )
        valid = not any(category(c) in _UNQUOTABLE and c not in "\n\t" for c in value)
        require(f"--{name}", repr(value), "contain no control characters", valid)
    rule = "be lower-case letters, digits and dashes, a letter first, and at most 47 characters"
    valid = len(options.name) <= 47 and re.fullmatch(_DNS_LABEL, options.name)
    require("--name", options.name, rule, bool(valid))
    _check_job(options.job, "dcgan64" if options.gpus else "cpu32")
    rule = "be an address such as http://mlflow:5000, without a query"
    uri = options.tracking_uri or ""
    require("--tracking_uri", uri, rule, bool(re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", uri)))
    rule, pattern = "be an image such as registry.example.com/ganray:1", r"[\w.][\w.:/@#+-]*"
    if options.target == "slurm":
        rule, pattern = f"{rule}, or a path /IMAGE.sqsh", rf"{pattern}|/[\w./@+-]+\.sqsh"
    image = options.image or "none"
    require("--image", image, rule, bool(re.fullmatch(pattern, image)))
    storage = options.storage or ""
    if options.target == "rayjob":
        name, url = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*", r"[a-z][a-z0-9]*://[\w./+-]+"
        rule = "be the name of a PersistentVolumeClaim, or a URL such as s3://bucket/ganray"
        require("--storage", storage, rule, bool(re.fullmatch(f"{name}|{url}", storage)))
    else:
        rule = "be an absolute path, without spaces, colons and commas"
        require("--storage", storage, rule, bool(re.fullmatch(r"/[\w./@+-]+", storage)))


def _check_job(job: str, preset: str) -> None:
    """Check the command of the job; `preset` is that of celeba if the command names none."""
    try:
        words = shlex.split(job)
    except ValueError as error:
        raise UserError(f"--job={job!r}: {error}; quote it as for a shell") from error
    rule = f"begin with one of {', '.join(_JOBS)}"
    require("--job", job, rule, bool(words) and words[0] in _JOBS)
    given = {word.partition("=")[0] for word in words}
    options = {"name": "name", "home": "storage", "tracking.uri": "tracking_uri"}
    for option, own in (options | {"storage": "storage"}).items():
        rule = f"leave out --{option}; use --{own} of this command"
        require("--job", job, rule, f"--{option}" not in given)
    if "--config" in given:  # a file of the cluster
        return
    name, *argv = words
    default = preset if name == "celeba" else "normal-100"
    try:
        if name != "sweep":
            cli.parse(argv, _JOBS[name], lambda _: default, "", default)
            return
        config, sweep = cli.parse_sweep(argv, _JOBS[name], "latents", "")
        for text in sweep.axis:
            parse_axis(text, config, cli.parse_value)
    except UserError as error:
        raise UserError(f"--job={job!r}: {error}") from error
