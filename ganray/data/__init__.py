"""Images on disk and their way to the device.

``sources`` reads data sets as they were published, ``writer`` converts them to HDF5 shards in the
format of ``format``, ``reader`` maps the shards, ``sampler`` determines the images of a step, and
``loader`` brings them to the device, where ``transforms`` crops and mirrors them. ``remote`` caches
shards behind a URL, and ``prepare`` decides what has to be done for a run.

The names in ``__all__`` are the public interface. They are imported on first use, so that the
processes of a conversion do not pay for ``torch``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganray.data.loader import Loader
    from ganray.data.reader import ShardedDataset
    from ganray.data.sampler import DeterministicSampler
    from ganray.data.writer import write_shards

__all__ = ["DeterministicSampler", "Loader", "ShardedDataset", "write_shards"]


def __getattr__(name: str) -> Any:
    modules = {
        "DeterministicSampler": "sampler",
        "Loader": "loader",
        "ShardedDataset": "reader",
        "write_shards": "writer",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
