"""How fast are images read: ganray, the limit of memory, and the peers, in one table.

    pip install -e '.[bench]'
    python -m tests.benchmarks.bench_data

All rows are of one run, on the same images, and deliver the same: shuffled uint8 batches of 128 as
one torch tensor, from files in the page cache. Each is measured in a process of its own, after up
to one epoch that is not counted; rounds go through all variants, so that a noisy minute does not
hit one alone, and the best round counts; rows without a spread took part in the first only. Formats
are written once and kept in ``--folder``.

``raw`` rows read pixels at the size they are trained at. ``JPEG`` rows decode 218x178 files; at
64x64 they also scale the short side to 64 and cut the middle out. ``per core`` is images per second
of CPU time of the process and its descendants, ``of RAM`` that divided by the same of ``RAM
gather``, ``anon MiB`` the memory without a file behind it that reading takes. A peer whose package
is missing is skipped; how to build FFCV is told in ``peers/ffcv.py``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from tests.benchmarks.images import BATCH, SIZES, Images, prepare_set
from tests.benchmarks.measure import ROOT, Reading, measure_in_child, write_in_child
from tests.benchmarks.table import Annotations, Row, bars, table
from tests.benchmarks.variants import VARIANTS, Variant

SMALL = 4
"""So many times more images at 64x64 than at 218x178, or they would fit into the CPU's cache."""
FEW = 5
"""The gzip file has a fifth of the images: it is written at 80 images/s."""
PACKAGES = [
    "ganray",
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "pillow",
    "simplejpeg",
    "ffcv",
    "litdata",
    "mosaicml-streaming",
    "webdataset",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "datasets",
    "ray",
    "pyarrow",
    "opencv-python-headless",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_240, help="at 218x178; 4 times that at 64")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="variants with a word that begins so"
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="a variant and round")
    parser.add_argument("--celeba", type=Path, help="use this set; without it, faces are drawn")
    parser.add_argument("--json", type=Path, help="also write all readings here")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "ganray-bench-data"
    )
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    if chosen.images < FEW * BATCH:
        parser.error(f"--images {chosen.images}: must be at least {FEW * BATCH}")

    folder = prepare_set(
        chosen.folder.resolve(), chosen.celeba, chosen.images, SMALL * chosen.images
    )
    variants = [v for v in VARIANTS if _is_wanted(v, chosen.only)]
    tasks = [
        (variant, _images(variant, folder, size, chosen.images))
        for size in chosen.sizes
        for variant in variants
    ]
    skipped = write_all(tasks)
    rows = measure_all(tasks, skipped, chosen.rounds, chosen.seconds)
    machine = describe_machine(load)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"images: {_count_text(chosen.images)}, {chosen.rounds} rounds of {chosen.seconds:g} s")
    print()
    print("\n".join(table(rows)))
    print()
    print("\n".join(bars(rows)))
    if chosen.json:
        readings = [_as_json(row) for row in rows.values()]
        text = {"machine": machine, "rows": readings, "bars": list(bars(rows))}
        chosen.json.write_text(json.dumps(text, indent=1) + "\n")


def _is_wanted(variant: Variant, beginnings: list[str]) -> bool:
    return any(f" {some.lower()}" in f" {variant.name.lower()}" for some in beginnings)


def _images(variant: Variant, folder: Path, size: str, base: int) -> Images:
    """Return which images a variant reads at a size."""
    total = SMALL * base if size == "64x64" else base
    count = {"all": total, "some": base, "few": base // FEW}[variant.images]
    return Images(folder, size, count, total)


def _count_text(base: int) -> str:
    return (
        f"{base:,} at 218x178 and {SMALL * base:,} at 64x64 "
        f"(JPEG, Ray Data and book rows: {base:,}; gzip: {base // FEW:,})"
    )


def write_all(tasks: list[tuple[Variant, Images]]) -> dict[tuple[str, str], str]:
    """Write every format that is not there yet; return why some cannot be."""
    skipped, failures = {}, {}
    for variant, images in tasks:
        name = f"{variant.module}-{variant.write}"
        done = images.at(name).with_name(f"{images.at(name).name}.done")
        if not variant.write or done.exists():
            continue
        if done not in failures:
            began = time.monotonic()
            _remove(images.at(name))
            failures[done] = write_in_child(variant, images, _log(variant, images))
            if not failures[done]:
                done.touch()
            outcome = failures[done] or f"{time.monotonic() - began:.0f} s"
            _say(f"write {images.size} {name}, {images.count:,} images: {outcome}")
        if failures[done]:
            skipped[images.size, variant.name] = failures[done]
    return skipped


def measure_all(
    tasks: list[tuple[Variant, Images]],
    skipped: dict[tuple[str, str], str],
    rounds: int,
    seconds: float,
) -> Annotations:
    """Measure every variant in every round; one that fails is not tried again."""
    rows = {
        (images.size, variant.name): Row(
            variant, images.size, skipped=skipped.get((images.size, variant.name), "")
        )
        for variant, images in tasks
    }
    plan = [task for n in range(rounds) for task in tasks if n == 0 or not task[0].once]
    began = time.monotonic()
    for number, (variant, images) in enumerate(plan):
        key = images.size, variant.name
        if rows[key].skipped:
            continue
        found = measure_in_child(variant, images, seconds, _log(variant, images))
        if isinstance(found, Reading):
            rows[key] = replace(rows[key], readings=(*rows[key].readings, found))
            outcome = f"{found.rate:,.0f} images/s"
        else:
            rows[key] = replace(rows[key], skipped=found)
            outcome = found
        left = (time.monotonic() - began) / (number + 1) * (len(plan) - number - 1)
        _say(
            f"{number + 1} of {len(plan)}, about {left / 60:.0f} min left: "
            f"{images.size} {variant.name}: {outcome}"
        )
    return rows


def describe_machine(load: float) -> dict[str, str]:
    """Return what the figures depend on, for the head of the table."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short", "HEAD")
    changed = " with changes" if _git("status", "--porcelain", "ganray") else ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit + changed,
        "machine": f"{len(os.sched_getaffinity(0))} cores of {cpu}, load {load:.1f} at the start",
        "python": f"{platform.python_version()}, {platform.system()} {platform.release()}",
        "packages": ", ".join(versions),
    }


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _as_json(row: Row) -> dict:
    readings = [asdict(reading) for reading in row.readings]
    return {
        "name": row.variant.name,
        "size": row.size,
        "threads": row.variant.threads,
        "skipped": row.skipped,
        "readings": readings,
    }


def _log(variant: Variant, images: Images) -> Path:
    folder = images.folder / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{images.size} {variant.name}.log"


def _remove(path: Path) -> None:
    """Remove what an interrupted run left of a format."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
