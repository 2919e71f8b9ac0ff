"""Convert a source to shards, or verify shards."""

from __future__ import annotations

import logging
import shlex

from ganray.config.commands import ShardConfig
from ganray.config.schema import absolute
from ganray.data.format import Manifest
from ganray.data.integrity import verify_shards
from ganray.data.sources import ImageSource, faces, notes_of, open_source, source_options
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.progress import Progress

logger = logging.getLogger(__name__)


def shard(options: ShardConfig) -> None:
    """Convert or verify as the options say, with progress, and print the result.

    Raises:
        UserError: The options are invalid, or shards are damaged.
    """
    if options.source == "verify":
        if options.path is None:
            raise UserError("verify needs a path: the folder of the shards")
        logger.info(f"undamaged: {_describe(verify_shards(options.path))}")
        return
    if options.out is None:
        raise UserError("--out is missing: name the folder for the shards")
    out = absolute("--out", options.out)
    manifest = write_shards(
        _open_source(options),
        out,
        size=options.size,
        images=options.images,
        split=options.split,
        processes=options.processes,
        encoding=options.encoding,
        bad_images=options.bad_images,
    )
    logger.info(f"{out}: {_describe(manifest)}")
    options_of_run = shlex.join(["--data.root", str(out), "--data.size", str(options.size)])
    logger.info(f"train on them with {options_of_run}")


def _open_source(options: ShardConfig) -> ImageSource:
    path, name = options.path and options.path.expanduser(), options.source
    if name == "faces":
        if path is None:
            raise UserError("faces needs a path: the folder to draw them into")
        with Progress(options.faces, "drawing faces", "faces") as progress:
            faces.write_celeba(path, options.faces, options.rng_seed, progress=progress.add)
        name = "celeba"
    source = open_source(
        name,
        path,
        download=options.download,
        rng_seed=options.rng_seed,
        count=options.stacked,
        options=source_options(options),
    )
    for note in notes_of(source):
        logger.info(note)
    return source


def _describe(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
    attributes = f", {len(manifest.attribute_names)} attributes" if manifest.attribute_names else ""
    shards = f"{len(manifest.shards)} shard{'s' if len(manifest.shards) > 1 else ''}"
    return (
        f"{manifest.num_images:,} images of {height}x{width}x{channels} "
        f"({manifest.recipe.encoding}){classes}{attributes} in {shards}, "
        f"{f'{size:,.0f}' if size >= 10 else f'{size:.2g}'} MB, digest {manifest.digest()}"
    )
