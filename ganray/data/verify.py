"""Read every byte of a set of shards and compare it with its digests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ganray.data.shard_file import damaged_rows, describe
from ganray.data.shards import REPAIR, Manifest, Place, Shard
from ganray.progress import Progress


def verify_shards(folder: Path) -> Manifest:
    """Check a whole set, with progress.

    Raises:
        ValueError: Something is missing or damaged; names every such shard and its rows.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    places = manifest.places(folder)
    problems = []
    with (
        Progress(manifest.num_images, f"verify {folder}", "images") as progress,
        ThreadPoolExecutor() as pool,  # hashing releases the GIL
    ):
        checks = pool.map(_verify_shard, places, manifest.shards)
        for shard, problem in zip(manifest.shards, checks, strict=True):
            problems += [problem] if problem else []
            progress.add(shard.rows)
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; {REPAIR}")
    return manifest


def _verify_shard(place: Place, shard: Shard) -> str | None:
    """Say in which rows a shard is damaged, if it is."""
    if place.path.exists() and describe(place.path, place) == shard:
        return None
    try:
        damage = damaged_rows(place)
    except ValueError as error:
        return str(error).removesuffix(f"; {REPAIR}")
    rows = ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in damage)
    return f"{shard.name} is damaged in {f'rows {rows}' if rows else 'its header or labels'}"
