"""Every row of the table: who reads what, with how many threads, and what to know about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to read the images."""

    name: str
    """Also what ``--only`` looks into."""
    module: str
    """In ``tests.benchmarks.peers``."""
    read: str
    """Its generator of batches: ``read(images, threads)``, and ``before_<read>`` where needed."""
    kind: str
    """``limit``, ``raw`` (ready pixels), ``jpeg`` (218x178 files) or ``book``."""
    threads: int = 1
    """Cores that do the reading: threads or worker processes; 1 may be the calling thread."""
    write: str = ""
    """``write_<write>`` makes its files; empty: it reads what ganray's raw reader reads."""
    images: str = "all"
    """``all`` of a size, ``some``: as many as there are JPEG files, or ``few`` of them."""
    warm: bool = True
    """Read ahead of the measurement, so that the page cache is warm and start-up is over."""
    once: bool = False
    """Far behind the others: measured in the first round only, to save time."""
    whole_epoch: bool = False
    """Measure one epoch with its start: where that takes seconds, a rate without it is a lie."""
    note: str = ""


_RAW, _JPEG = {"kind": "raw", "write": "raw"}, {"kind": "jpeg", "write": "jpeg", "images": "some"}
_RAY = {"threads": 2, "once": True, "whole_epoch": True}
_SLOW = {"once": True}
_FILES = {**_JPEG, "write": ""}

VARIANTS = [
    Variant("RAM gather", "limits", "gather", "limit", note="index_select, RAM tensor"),
    Variant("RAM gather 2 threads", "limits", "gather", "limit", threads=2, note="index_select"),
    Variant("RAM copy", "limits", "memcpy", "limit", note="batch after batch, in order"),
    Variant("ganray raw in line", "ours", "in_line", "raw"),
    Variant("ganray raw thread", "ours", "through_thread", "raw", note="the Loader"),
    Variant("ganray raw 2 threads", "ours", "in_line", "raw", threads=2, note="in line"),
    Variant("ganray raw cold", "ours", "cold", "raw", warm=False, note="evicted; first epoch"),
    Variant("FFCV raw", "ffcv", "raw", **_RAW, note="1 worker; first batch compiles"),
    Variant("FFCV raw 2", "ffcv", "raw", threads=2, **_RAW, note="2 workers"),
    Variant("LitData raw", "litdata", "raw", **_RAW, note="bytes, no worker"),
    Variant("LitData raw 2", "litdata", "raw", threads=2, **_RAW, note="bytes, 2 workers"),
    Variant(
        "MosaicML raw", "mosaic", "raw", threads=2, **_RAW, **_SLOW, note="MDS ndarray, 2 workers"
    ),
    Variant("WebDataset raw", "webdataset", "raw", **_RAW, **_SLOW, note="bytes, no worker"),
    Variant(
        "Ray Data raw", "ray_data", "raw", **_RAW, **_RAY, images="some", note="tensors, 2 CPUs"
    ),
    Variant("ganray JPEG", "ours", "jpeg", **_JPEG, note="in line"),
    Variant("ganray JPEG 2", "ours", "jpeg", threads=2, **_JPEG, note="in line, 2 threads"),
    Variant("FFCV JPEG", "ffcv", "jpeg", **_JPEG, note="1 worker"),
    Variant("FFCV JPEG 2", "ffcv", "jpeg", threads=2, **_JPEG, note="2 workers"),
    Variant("DALI JPEG", "dali", "jpeg", **_FILES, note="CPU pipeline, 1 thread"),
    Variant("DALI JPEG 2", "dali", "jpeg", threads=2, **_FILES, note="CPU pipeline, 2 threads"),
    Variant(
        "WebDataset JPEG", "webdataset", "jpeg", threads=2, **_JPEG, **_SLOW, note="PIL, 2 workers"
    ),
    Variant(
        "ImageFolder JPEG",
        "imagefolder",
        "jpeg",
        threads=2,
        **_FILES,
        **_SLOW,
        note="PIL, 2 workers",
    ),
    Variant(
        "HF datasets JPEG",
        "huggingface",
        "jpeg",
        threads=2,
        **_JPEG,
        **_SLOW,
        note="PIL, 2 workers",
    ),
    Variant("Ray Data JPEG", "ray_data", "jpeg", **_JPEG, **_RAY, note="Parquet, PIL, 2 CPUs"),
    Variant("book raw", "book", "raw", "book", write="raw", images="some", **_SLOW, note="batch 1"),
    Variant(
        "book gzip 9", "book", "gzip", "book", write="gzip", images="few", **_SLOW, note="batch 1"
    ),
]
