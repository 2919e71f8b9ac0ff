"""What jobs/explore.py does: draw what a generator makes of chosen latents, and log the pictures.

Every row of a picture is one walk or one sum; where the generator is conditional, all of a row has
one label, and the rows take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganray.commands import load_generator
from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import ExploreConfig
from ganray.errors import UserError
from ganray.figures import (
    Row,
    enlarge,
    labelled_rows,
    require_encoder,
    write_gif,
    write_mp4,
)
from ganray.gan import latents
from ganray.gan.latents import (
    closed_walk,
    lerp,
    neighbours,
    project_to_shell,
    shell_radius,
    slerp,
)

_COLUMNS = 8
"""Of the random samples, which have as many rows, or one for each class."""
_STOPS = 4
"""Latents that the closed walk goes through."""
_WALK_PIXELS = 480
"""Side of the animation at most, which shows as many walks at once as fit."""


def explore(options: ExploreConfig) -> None:
    """Find the generator, draw, write, log, say where the pictures are.

    Raises:
        ValueError: bad input, found before anything is written.
    """
    if options.animation == "mp4":
        require_encoder()
    found = load_generator.load_generator(options.run, options.home_folder(), options.tracking_uri)
    _check_label(found, options.label)
    print(f"generator   {found.source}; {_in_words(found)}", flush=True)
    folder = found.output_folder("explore", options.out, options.home_folder())
    folder.mkdir(parents=True, exist_ok=True)
    files = [*write_pictures(found, options, folder), *write_walk(found, options, folder)]
    print(f"pictures    {folder}: {', '.join(file.name for file in files)}", flush=True)
    found.log(files, "explore", "pictures")


def _check_label(found: TrainedGenerator, label: int | None) -> None:
    """Refuse a label that the generator does not know.

    Raises:
        ValueError: the label, and what there is.
    """
    if label is not None and not found.classes:
        raise UserError(
            f"--label={label}: this generator was trained without labels"
            " (network.conditional=false); leave --label out"
        )
    if label is not None and label >= found.classes:
        raise UserError(
            f"--label={label} must lie in [0, {found.classes}), the classes that the generator"
            " learned"
        )


def write_pictures(found: TrainedGenerator, options: ExploreConfig, folder: Path) -> Iterator[Path]:
    """Draw the still pictures and save each as a PNG."""
    for name, draw in {
        "samples": samples,
        "interpolation": interpolation,
        "arithmetic": arithmetic,
        "neighbours": neighbourhood,
    }.items():
        path = folder / f"{name}.png"
        Image.fromarray(draw(found, options)).save(path)
        yield path


def samples(found: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Random samples, of each class a row; (h, w, 3) uint8, as all pictures here."""
    count = _COLUMNS if options.label is not None else max(_COLUMNS, min(found.classes, 20))
    rows = []
    for i in range(count):
        label, caption = _turn(found, options, i)
        z = _latents(found, options, "samples", i, _COLUMNS)
        rows.append(Row(found.images(z, label), caption))
    return labelled_rows([rows], f"{found.config.name}: random samples")


def interpolation(found: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """From z1 to z2 of each pair, straight and along the great circle, with the norms."""
    t, groups = torch.linspace(0, 1, options.steps), []
    for i in range(options.pairs):
        label, caption = _turn(found, options, i)
        z1, z2 = _latents(found, options, "pairs", i, 2)
        group = []
        for name, way in {"lerp": lerp, "slerp": slerp}.items():
            z = way(z1, z2, t)
            notes = [f"{norm:#.3g}" for norm in z.norm(dim=1)]
            group.append(Row(found.images(z, label), f"{name}\n{caption}".strip(), notes))
        groups.append(group)
    title = f"{found.config.name}: from z1 to z2; above each image |z|, {_shell(found)}"
    return labelled_rows(groups, title)


def arithmetic(found: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """z1, z2, their sum, difference and product, as they come and scaled to the shell."""
    radius, groups = shell_radius(found.config.latent), []
    names = ("z1", "z2", "z1 + z2", "z1 - z2", "z1 * z2")
    for i in range(options.pairs):
        label, caption = _turn(found, options, i)
        z1, z2 = _latents(found, options, "pairs", i, 2)
        raw = torch.stack([z1, z2, z1 + z2, z1 - z2, z1 * z2])
        notes = [
            f"{name}  ({norm:#.3g})" for name, norm in zip(names, raw.norm(dim=1), strict=True)
        ]
        scaled = found.images(project_to_shell(raw, radius), label)
        groups.append(
            [
                Row(found.images(raw, label), f"raw\n{caption}".strip(), notes),
                Row(scaled, f"on the shell\n{caption}".strip()),
            ]
        )
    title = f"{found.config.name}: arithmetic with latents; in brackets |z|, {_shell(found)}"
    return labelled_rows(groups, title)


def neighbourhood(found: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Walks from one latent in as many directions as there are pairs, with the angles."""
    degrees = torch.linspace(0, options.degrees, options.steps)
    z, rows = _latents(found, options, "neighbours", 0, 1)[0], []
    for i in range(options.pairs):
        label, caption = _turn(found, options, i)
        towards = _latents(found, options, "directions", i, 1)[0]
        images = found.images(neighbours(z, towards, degrees.deg2rad()), label)
        notes = [] if i else [f"{angle:.0f}°" for angle in degrees]
        rows.append(Row(images, caption, notes))
    title = f"{found.config.name}: one z turned towards others; above each image by how much"
    return labelled_rows([rows], title)


def write_walk(found: TrainedGenerator, options: ExploreConfig, folder: Path) -> Iterator[Path]:
    """Write the animation, if one is asked for."""
    if options.animation == "none":
        return
    path = folder / f"walk.{options.animation}"
    write = write_gif if options.animation == "gif" else write_mp4
    write(walk(found, options), path, options.fps)
    yield path


def walk(found: TrainedGenerator, options: ExploreConfig) -> np.ndarray:
    """Closed walks side by side: frames, uint8 (n, h, w, 3); after the last comes the first."""
    stops = _latents(found, options, "walks", 0, _STOPS)
    side = max(enlarge(found.images(stops[:1])).shape[1:3])
    across = max(1, min(4, _WALK_PIXELS // side))
    walks = []
    for i in range(across * across):
        label, _ = _turn(found, options, i)
        stops = _latents(found, options, "walks", i, _STOPS)
        walks.append(found.images(closed_walk(stops, options.frames()), label))
    grids = np.stack(walks, axis=1).reshape(-1, across, across, *walks[0].shape[1:])
    return np.stack([labelled_rows([[Row(row) for row in grid]]) for grid in grids])


def _latents(
    found: TrainedGenerator, options: ExploreConfig, stream: str, number: int, count: int
) -> torch.Tensor:
    """Latents of the trained distribution, a function of the seed, the stream and the number."""
    return latents.sample(
        found.config.latent,
        count,
        rng_seed=options.rng_seed,
        stream=f"explore/{stream}",
        step=number,
        device=torch.device("cpu"),
    )


def _turn(found: TrainedGenerator, options: ExploreConfig, row: int) -> tuple[int, str]:
    """The label of a row, and how its caption says so."""
    if not found.classes:
        return 0, ""
    label = row % found.classes if options.label is None else options.label
    return label, f"label {label}"


def _in_words(found: TrainedGenerator) -> str:
    """What the generator takes."""
    latent, classes = found.config.latent, found.classes
    label = f" and one of {classes} labels" if classes else ""
    return f"takes {latent.distribution} latents of size {latent.size}{label}"


def _shell(found: TrainedGenerator) -> str:
    """Where the trained latents lie, in words."""
    return f"which is about {shell_radius(found.config.latent):#.3g} where G has learned"
