"""Latent space experiments: draw images of chosen latents and add them to the MLflow run.

Each row of a picture is one walk or one calculation. Rows of a conditional generator cycle through
the classes. What is written on demand instead of pictures is in `generate_images`, `project_image`
and `export_generator`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganray.commands.export_generator import export_generator, require_exporter
from ganray.commands.generate_images import generate_images
from ganray.commands.load_generator import TrainedGenerator, list_runs, load_generator
from ganray.commands.project_image import check_image, project_image
from ganray.config.commands import ExploreConfig, home_folder
from ganray.errors import UserError
from ganray.figures import Row, enlarge, labeled_rows, require_encoder, write_gif, write_mp4
from ganray.gan.latents import (
    closed_walk,
    lerp,
    neighbors,
    project_to_shell,
    shell_radius,
    slerp,
    truncate,
)

logger = logging.getLogger(__name__)

_COLUMNS = 8
"""Columns of the random samples, which have as many rows, or one per class."""
_WALK_STOPS = 4
"""Latents that the closed walk passes through."""
_WALK_PIXELS = 480
"""Maximum side of the animation, which shows as many walks as fit."""


def explore(options: ExploreConfig) -> None:
    """Draw all pictures of a generator, or write what is asked for, and add it to its MLflow run.

    The images of --count are not added to MLflow. Without a run, list the runs there are.

    Raises:
        UserError: The options are invalid; raised before anything is written.
    """
    home = home_folder(options.home)
    if not options.run:
        logger.info(list_runs(home, options.storage))
        return
    if options.animation == "mp4":
        require_encoder()
    if options.export:
        require_exporter(options.export)
    if options.project:
        check_image(options.project)
    generator = load_generator(options.run, home, options.tracking_uri, options.storage)
    _check_label(generator, options)
    latent, classes = generator.config.latent, generator.classes
    inputs = f"{latent.distribution} latents of size {latent.size}"
    inputs += f" and one of {classes} labels" if classes else ""
    logger.info(f"generator   {generator.source}; takes {inputs}")
    if options.psi != 1:
        _log_truncation(generator, options.psi)
    folder = generator.output_folder("explore", options.out, home)
    if options.count:
        generate_images(generator, options, options.count, folder / "images")
        return
    if options.project:
        files = project_image(generator, options, options.project, folder)
    elif options.export:
        files = [export_generator(generator, options.export, folder)]
    else:
        files = [
            *write_pictures(generator, options, folder),
            *write_walk(generator, options, folder),
        ]
    what = "files" if options.project or options.export else "pictures"
    logger.info(f"{what:11s} {folder}: {', '.join(file.name for file in files)}")
    generator.log(files, "explore", what)


def _log_truncation(generator: TrainedGenerator, psi: float) -> None:
    """Log how much the truncation changes samples, which is nothing if G ignores |z|."""
    latent = generator.config.latent
    z = generator.latents(64, 0, "psi")
    before, after = (generator.images(truncate(latent, z, x)).astype(float) for x in (1, psi))
    change = abs(after - before).mean()
    logger.info(
        f"truncation  psi = {psi:g} changes pixels by {change:.1f} of 255 levels on average"
    )
    if change < 0.1:
        logger.warning(
            f"--psi={psi:g} has no visible effect: this G hardly depends on |z|, for example"
            " because it normalizes its first layer, as dcgan does"
        )


def _check_label(generator: TrainedGenerator, options: ExploreConfig) -> None:
    """Raise UserError unless the generator has this class."""
    label = options.label
    if options.project and generator.classes and label is None:
        raise UserError(
            f"--project needs the class of the image; add --label, in [0, {generator.classes})"
        )
    if label is not None and not generator.classes:
        raise UserError(
            f"--label={label}: this generator was trained without labels"
            " (network.conditional=false); leave out --label"
        )
    if label is not None and label >= generator.classes:
        raise UserError(
            f"--label={label} must lie in [0, {generator.classes}), the classes of the generator"
        )


def write_pictures(
    generator: TrainedGenerator, options: ExploreConfig, folder: Path
) -> Iterator[Path]:
    """Draw the still pictures and save each as PNG."""
    for name, draw in {
        "samples": samples,
        "interpolation": interpolation,
        "arithmetic": arithmetic,
        "neighbors": neighborhood,
    }.items():
        path = folder / f"{name}.png"
        Image.fromarray(draw(generator, options)).save(path)
        yield path


def samples(generator: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Draw random samples, one class per row; uint8 (h, w, 3) like all pictures here."""
    count = _COLUMNS if options.label is not None else max(_COLUMNS, min(generator.classes, 20))
    rows = [
        Row(generator.images(z, label), caption)
        for z, label, caption in _rows(generator, options, "samples", count, _COLUMNS)
    ]
    return labeled_rows([rows], _title(generator, options, "random samples"))


def interpolation(generator: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Draw interpolations between pairs, straight and along the great circle, with norms."""
    t, groups = torch.linspace(0, 1, options.steps), []
    for pair, label, caption in _rows(generator, options, "pairs", options.pairs, 2):
        group = []
        for name, interpolate in {"straight\n(lerp)": lerp, "great circle\n(slerp)": slerp}.items():
            z = interpolate(pair[0], pair[1], t)
            notes = [f"{norm:#.3g}" for norm in z.norm(dim=1)]
            group.append(Row(generator.images(z, label), f"{name}\n{caption}".strip(), notes))
        groups.append(group)
    title = f"from z1 to z2; above each image |z|, {_describe_shell(generator)}"
    return labeled_rows(groups, _title(generator, options, title))


def arithmetic(generator: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Draw z1, z2, their sum, difference and product, raw and projected to the shell."""
    radius, groups = shell_radius(generator.config.latent, options.psi), []
    names = ("z1", "z2", "z1 + z2", "z1 - z2", "z1 * z2")
    for (z1, z2), label, caption in _rows(generator, options, "pairs", options.pairs, 2):
        raw = torch.stack([z1, z2, z1 + z2, z1 - z2, z1 * z2])
        norms = zip(names, raw.norm(dim=1), strict=True)
        notes = [f"{name}  ({norm:#.3g})" for name, norm in norms]
        scaled = generator.images(project_to_shell(raw, radius), label)
        groups.append(
            [
                Row(generator.images(raw, label), f"as computed\n{caption}".strip(), notes),
                Row(scaled, f"scaled to\n|z| = {radius:#.3g}\n{caption}".strip()),
            ]
        )
    title = f"arithmetic with latents; in brackets |z|, {_describe_shell(generator)}"
    title = _title(generator, options, title)
    if generator.config.network.kind == "dcgan" and not generator.classes:
        title += "\nThis G normalizes its first layer, which removes |z|: both rows look alike"
    return labeled_rows(groups, title)


def neighborhood(generator: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Draw walks from one latent in several directions, with angles."""
    degrees = torch.linspace(0, options.degrees, options.steps)
    start, rows = next(_rows(generator, options, "neighbors", 1, 1))[0][0], []
    for (towards,), label, caption in _rows(generator, options, "directions", options.pairs, 1):
        images = generator.images(neighbors(start, towards, degrees.deg2rad()), label)
        notes = [] if rows else [f"{angle:.0f}°" for angle in degrees]
        rows.append(Row(images, caption, notes))
    title = "one z rotated towards others; above each image the angle"
    return labeled_rows([rows], _title(generator, options, title))


def write_walk(generator: TrainedGenerator, options: ExploreConfig, folder: Path) -> Iterator[Path]:
    """Write the animation unless it is disabled."""
    if options.animation == "none":
        return
    path = folder / f"walk.{options.animation}"
    write = write_gif if options.animation == "gif" else write_mp4
    write(walk(generator, options), path, options.fps)
    yield path


def walk(generator: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Return closed walks side by side as frames, uint8 (n, h, w, 3), that loop."""
    image = np.zeros((1, *generator.image_shape()), np.uint8)
    side = max(1, min(4, _WALK_PIXELS // max(enlarge(image).shape[1:3])))
    walks = [
        generator.images(closed_walk(stops, options.frames()), label)
        for stops, label, _ in _rows(generator, options, "walks", side * side, _WALK_STOPS)
    ]
    grids = np.stack(walks, axis=1).reshape(-1, side, side, *walks[0].shape[1:])
    return np.stack([labeled_rows([[Row(row) for row in grid]]) for grid in grids])


def _rows(
    generator: TrainedGenerator, options: ExploreConfig, stream: str, count: int, width: int
) -> Iterator[tuple[torch.Tensor, int, str]]:
    """Yield latents (width, size), label and caption of each row.

    The latents have the trained distribution, truncated by psi, and depend on seed, stream and row
    only.
    """
    for row in range(count):
        z = generator.latents(width, options.rng_seed, stream, row)
        z = truncate(generator.config.latent, z, options.psi)
        if generator.classes:
            label = row % generator.classes if options.label is None else options.label
            yield z, label, f"label {label}"
        else:
            yield z, 0, ""


def _title(generator: TrainedGenerator, options: ExploreConfig, text: str) -> str:
    """Return the title of a picture, with the truncation if there is one."""
    truncation = f"; truncated with psi = {options.psi:g}" if options.psi != 1 else ""
    return f"{generator.config.name}: {text}{truncation}"


def _describe_shell(generator: TrainedGenerator) -> str:
    """Describe the norm of latents seen in training."""
    radius = shell_radius(generator.config.latent)
    return f"which is about {radius:#.3g} for latents seen in training"
