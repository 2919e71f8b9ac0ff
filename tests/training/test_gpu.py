"""Training on a GPU: no hidden waits, the CPU's numbers, bit for bit where that is promised.

`pytest -m gpu` on a machine with a GPU. Without one, the tests that can run on the CPU do.
"""

from contextlib import closing, nullcontext
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ganray.config.presets import CELEBA, MNIST, STACKED
from ganray.config.schema import Config, LatentConfig, OptimizerConfig
from ganray.data.in_memory import InMemoryDataset
from ganray.data.loader import Loader
from ganray.data.reader import ShardedDataset
from ganray.data.sampler import DeterministicSampler
from ganray.data.writer import write_shards
from ganray.gan.augmentation import DRAWS
from ganray.training import journal, loop, state, updates
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.benchmarks.gpu import quiet
from tests.conftest import Squares, regularized_config, tiny_config
from tests.training.test_resume import states_equal, unrolled_config

pytestmark = pytest.mark.gpu
HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")

STEPS, FIRST, LAST = (40, 25, 35) if HAS_GPU else (3, 1, 2)
"""Length of a run, and its steps in which the host must not wait for the device: after the capture
of CUDA graphs, which waits."""
OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "crop and flip": {"data": {"crop": 12, "flip": True}, "network": {"kind": "mlp"}},
    "on the device": {"data": {"residence": "device"}},
    "conditional": {"network": {"conditional": True}},
    "pack": {"network": {"pack": 2, "minibatch_stddev": 2, "spectral_norm": True}},
    "WGAN-GP": {"loss": {"name": "wgan", "gp_weight": 10.0}, "train": {"G_every": 5}},
    "unrolled": {"loss": {"unroll": 2}},
    "lazy penalties": {"loss": {"r1_gamma": 1.0, "r2_gamma": 1.0, "penalty_every": 3}},
    "relativistic": {"loss": {"name": "relativistic"}},
    "two G steps": {"train": {"G_steps": 2}},
    "bf16": {"train": {"precision": "bf16"}},
    "deterministic": {"train": {"deterministic": True, "matmul_precision": "highest"}},
    "resnet": {"network": {"kind": "resnet", "width_G": 16, "width_D": 16}},
    "ada": {"augment": {"policy": "ada", "p": 0.5}},
    "adaptive ada": {"augment": {"policy": "ada", "target": 0.6}},
    "diffaugment": {"augment": {"policy": "diffaugment"}},
    "microbatch": {"train": {"microbatch": 5}},
    "G without averaging": {"train": {"ema_kimg": 0}},
}
for hints, section, field in (
    (get_type_hints(LatentConfig), "latent", "distribution"),
    (get_type_hints(OptimizerConfig), "optimizer", "name"),
):
    OPTIONS |= {value: {section: {field: value}} for value in get_args(hints[field])}


def with_options(config: Config, options: dict[str, dict[str, object]]) -> Config:
    """Return the config with other values of some fields of some sections."""
    sections = {name: replace(getattr(config, name), **values) for name, values in options.items()}
    return replace(config, **sections)


def train_without_waits(config, shards, monkeypatch):
    """Train; on a GPU, torch raises if the host waits for it in a step from FIRST to LAST."""
    augment_rows = loop.augment_rows

    def strict_augment_rows(state, images, rows):
        if HAS_GPU:
            is_strict = FIRST <= state.step < LAST
            torch.cuda.set_sync_debug_mode("error" if is_strict else "default")
        return augment_rows(state, images, rows)

    monkeypatch.setattr(loop, "augment_rows", strict_augment_rows)
    config = quiet(config, STEPS * config.train.batch_size / 1000)
    config = replace(config, train=replace(config.train, log_every=1e6))
    try:
        launch(config, str(shards))
    finally:
        if HAS_GPU:
            torch.cuda.set_sync_debug_mode("default")
    assert len(journal.history(config.run_folder(), "loss/D")[0]) == 1  # no log line before the end


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_option_makes_the_host_wait_for_the_gpu(options, squares, tmp_path, monkeypatch):
    config = with_options(tiny_config(tmp_path), options)
    if "latent" in options:
        config = with_options(config, {"latent": {"scaling": "standardized"}})
    train_without_waits(config, squares, monkeypatch)


@pytest.mark.parametrize("name", CELEBA | MNIST | STACKED)
def test_no_preset_makes_the_host_wait_for_the_gpu(name, tmp_path, monkeypatch):
    config = replace((CELEBA | MNIST | STACKED)[name], name="run", home=tmp_path)
    if not HAS_GPU:  # small, so that this takes seconds
        width = 8 if config.network.kind == "resnet" else 4
        network = {"width_G": width, "width_D": width, "max_width": 16}
        config = with_options(config, {"network": network, "train": {"batch_size": 16}})
    write_shards(Squares(256), tmp_path / "shards", size=config.data.size or 28)
    train_without_waits(config, tmp_path / "shards", monkeypatch)


@pytest.mark.parametrize("make", [tiny_config, regularized_config, unrolled_config])
def test_deterministic_runs_and_resumed_ones_are_equal_bit_for_bit(make, squares, tmp_path):
    def train(name, *lengths):
        config = with_options(make(tmp_path / name), {"train": {"deterministic": True}})
        for length in lengths:
            checkpoint = launch(replace(config, train=replace(config.train, kimg=length)), squares)
        return read_state(checkpoint)

    once = train("once", 0.24)
    assert states_equal(once, train("again", 0.24))
    assert states_equal(once, train("resumed", 0.12, 0.24))


@needs_gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cuda_graphs_change_no_weight(options, squares, tmp_path):
    def train(cuda_graphs):
        config = with_options(tiny_config(tmp_path / str(cuda_graphs)), options)
        exact = {"cuda_graphs": cuda_graphs, "deterministic": True}
        return read_state(launch(with_options(config, {"train": exact}), squares))

    assert states_equal(train(True), train(False))


@needs_gpu
def test_twenty_steps_agree_with_the_cpu(squares, tmp_path, monkeypatch):
    """In full fp32, from the same latents, which the generators of CPU and GPU would not draw."""
    sample = loop.latents.sample

    def sample_on_cpu(*args, device, **options):
        return sample(*args, device=torch.device("cpu"), **options).to(device)

    monkeypatch.setattr(loop.latents, "sample", sample_on_cpu)
    losses = []
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(
            "ganray.training.context.local_device", lambda device=device: torch.device(device)
        )
        full = {"train": {"matmul_precision": "highest", "deterministic": True}}
        config = with_options(tiny_config(tmp_path / device), full)
        launch(config, str(squares))
        names = ("loss/D", "loss/G", "loss/r1")
        losses.append([journal.history(config.run_folder(), name)[1] for name in names])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("loader", [Loader, InMemoryDataset])
def test_batches_on_the_gpu_are_those_on_the_cpu(loader, squares):
    def batches(device):
        with closing(ShardedDataset(squares)) as images:
            sampler = DeterministicSampler(len(images), 0, 0, 0)
            options = {"batch_size": 12, "rank": 0, "world_size": 1, "device": device}
            stream = loader(images, sampler, **options)
            copies = [next(stream).to("cpu", copy=True) for _ in range(40)]
            stream.close()
        return copies

    on_gpu, on_cpu = batches("cuda:0"), batches("cpu")
    assert all(torch.equal(a, b) for a, b in zip(on_gpu, on_cpu, strict=True))


# The others change latents and optimizers only, which the test replaces.
STEP_OPTIONS = [k for k, v in OPTIONS.items() if v.keys().isdisjoint(("latent", "optimizer"))]


@pytest.mark.parametrize("name", [*CELEBA, *MNIST, *STACKED, *STEP_OPTIONS])
def test_updates_stay_on_one_device(name, tmp_path, monkeypatch):
    """Updates at full size run on the meta device, which cannot be mixed with the CPU, like a GPU.

    Its tensors have no values, so that reading one, for which the host would wait, fails, too.
    """
    presets = CELEBA | MNIST | STACKED
    config = presets.get(name) or with_options(tiny_config(tmp_path), OPTIONS[name])
    # The meta device has neither automatic casts nor fused optimizers.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(
        state, "build_optimizer", lambda _, network, lr: torch.optim.SGD(network.parameters(), lr)
    )
    n, side = config.train.batch_size, config.data.size or 28
    classes = 10 if config.network.conditional else 0
    shape = config.data.cropped_shape((side, side, 1 if name in MNIST else 3))
    trained = state.TrainState(config, shape, torch.device("meta"), classes)
    with torch.device("meta"):
        draws = None if config.augment.policy == "none" else torch.empty(n, 2 * DRAWS)
        z = torch.empty(n, config.latent.size + classes)
        batch = updates.Batch(
            torch.empty(n, *shape, dtype=torch.uint8),
            [torch.empty(n, classes)] if classes else [],
            z_D=z,
            z_G=[z],
            alpha=torch.empty(n) if config.loss.gp_weight else None,
            penalty_scale=1.0,
            draws_D=draws,
            draws_G=[] if draws is None else [draws],
        )
    assert updates.Updates(trained, 1.0, lambda: None)(batch).totals.is_meta
    trained.advance()
