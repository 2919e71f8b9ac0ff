"""Export a generator to formats that other programs read: ONNX and safetensors."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ganray.commands.load_generator import TrainedGenerator
from ganray.errors import UserError
from ganray.files import write_atomic

Format = Literal["onnx", "safetensors"]

_MODULES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript"),
    "safetensors": ("safetensors",),
}
"""Modules that each format needs."""


def require_exporter(kind: Format) -> None:
    """Raise UserError if a module that a format needs is not installed."""
    missing = [name for name in _MODULES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--export={kind} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def export_generator(generator: TrainedGenerator, kind: Format, folder: Path) -> Path:
    """Write G.onnx or G.safetensors, with `metadata`, and return its path.

    The ONNX model maps ``z``, float32 (n, latent.size + classes), to ``images``, float32 (n, C, H,
    W), for any n, and includes the weights. The safetensors file contains the weights by their
    names in ``G.state_dict()``.

    Raises:
        UserError: The file cannot be written.
    """
    assert isinstance(generator.G, nn.Module)
    write = _onnx if kind == "onnx" else _safetensors
    path = folder / f"G.{kind}"
    write_atomic(path, write(generator.G, metadata(generator)))
    return path


def metadata(generator: TrainedGenerator) -> dict[str, str]:
    """Return what a user of the exported generator has to know, as JSON, except for sentences.

    With `network`, `latent`, `image_shape` and `classes`, ``ganray.gan.networks.build`` builds G.
    """
    config, latent = generator.config, generator.config.latent
    shape = generator.image_shape()
    label = f", followed by the one-hot label of {generator.classes} classes"
    low = config.pixel_min()
    return {
        "input": f"float32 (n, {latent.size + generator.classes}): latents, {latent}"
        + (label if generator.classes else ""),
        "output": f"float32 (n, {shape[2]}, {shape[0]}, {shape[1]}): pixels in [{low:g}, 1]",
        "latent": json.dumps(asdict(latent)),
        "network": json.dumps(asdict(config.network)),
        "image_shape": json.dumps(shape),
        "classes": json.dumps(generator.classes),
        "pixel_range": json.dumps([low, 1.0]),
        "source": f"ganray run {generator.label}",
    }


def _onnx(G: nn.Module, about: dict[str, str]) -> bytes:
    latent, classes = json.loads(about["latent"]), json.loads(about["classes"])
    example = torch.zeros(2, latent["size"] + classes)
    with warnings.catch_warnings(action="ignore"):  # of torch.onnx and its dependencies
        program = torch.onnx.export(
            G,
            (example,),
            input_names=["z"],
            output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


def _safetensors(G: nn.Module, about: dict[str, str]) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in G.state_dict().items()}
    return save(tensors, about)
