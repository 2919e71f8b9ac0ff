"""What jobs/shard.py does: make a set of shards out of any source, or verify one."""

from __future__ import annotations

from ganray.config.commands import ShardConfig
from ganray.data.format import ImageSource, Manifest
from ganray.data.sources import NAMES, faces, open_source
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.progress import Progress

SOURCES = NAMES | {
    "faces": "procedural faces in CelebA's layout: they are drawn into PATH, --faces of them",
    "verify": "make nothing, but read every byte of the shards in PATH and compare all digests",
}
"""The first word of the command line, each with one line of help."""


def pack(config: ShardConfig) -> None:
    """Do what the command line asks for, with progress, and say what is there then.

    Raises:
        ValueError: Bad input, or damage, with the way out.
    """
    if config.source == "verify":
        from ganray.data.writer import verify_shards

        if config.path is None:
            raise UserError("verify needs a path: the folder of the shards")
        print(f"whole: {_describe(verify_shards(config.path))}")
        return
    if config.out is None:
        raise UserError("--out is missing: name the folder that the shards go to")
    manifest = write_shards(
        _open(config),
        config.out.expanduser(),
        size=config.size,
        images=config.images,
        split=config.split,
        processes=config.processes,
        encoding=config.encoding,
    )
    print(f"{config.out}: {_describe(manifest)}")
    print(f"train on them with --data.root {config.out} --data.size {config.size}")


def _open(config: ShardConfig) -> ImageSource:
    path = config.path and config.path.expanduser()
    if config.source != "faces":
        return open_source(
            config.source,
            path,
            download=config.download,
            rng_seed=config.rng_seed,
            count=config.stacked,
        )
    if path is None:
        raise UserError("faces needs a path: the folder that they are drawn into")
    with Progress(config.faces, "drawing faces", "faces") as progress:
        faces.write_celeba(path, config.faces, config.rng_seed, progress=progress.add)
    return open_source("celeba", path)


def _describe(manifest: Manifest) -> str:
    height, width, channels = manifest.image_shape
    size = sum(shard.bytes for shard in manifest.shards)
    classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
    attributes = f", {len(manifest.attribute_names)} attributes" if manifest.attribute_names else ""
    return (
        f"{manifest.num_images:,} images of {height}x{width}x{channels} "
        f"({manifest.recipe.encoding}){classes}{attributes} in {len(manifest.shards)} shards, "
        f"{size / 1e9:.2f} GB, digest {manifest.digest()}"
    )
