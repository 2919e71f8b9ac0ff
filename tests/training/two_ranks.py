"""Script that test_parity.py runs under torchrun: trains and counts the bytes that DDP reduces.

torchrun --nproc-per-node 2 two_ranks.py SHARDS HOME
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from ganray.config.schema import Config
from ganray.data.reader import ShardedDataset
from ganray.distributed import (
    Means,
    broadcast_from_rank0,
    rank,
    sum_values,
    torchrun_group,
    world_size,
)
from ganray.evaluation.reference import NO_ASSETS
from ganray.gan.step import discriminator_step, generator_step
from ganray.training import loop, rank_times
from ganray.training.context import LocalContext
from ganray.training.launch import launch, run_worker
from ganray.training.loop import rank_latents
from ganray.training.rank_times import RankTimes
from ganray.training.state import TrainState
from tests.conftest import augmented_config, regularized_config, tiny_config


def count_reduced_bytes(shards: str, home: Path) -> dict[str, int]:
    """Count the gradient bytes that all_reduce gets in one D step and one G step."""
    config = tiny_config(home)
    state = TrainState(config, ShardedDataset(Path(shards)).image_shape, torch.device("cpu"))
    reduced = {"D": 0, "G": 0}

    def counting_hook(name):
        def hook(_, bucket: dist.GradBucket):
            reduced[name] += bucket.buffer().nbytes
            return (
                dist.all_reduce(bucket.buffer(), async_op=True)
                .get_future()
                .then(lambda done: done.value()[0] / world_size())
            )

        return hook

    for name, objective in (("D", state.D_objective), ("G", state.G_objective)):
        assert isinstance(objective, DistributedDataParallel)
        objective.register_comm_hook(None, counting_hook(name))
    real, z = torch.rand(3, 3, 16, 16), torch.randn(3, 8)
    discriminator_step(state.D_objective, state.G, state.D_optimizer, real, z)
    after_D = dict(reduced)
    generator_step(state.G_objective, state.D, state.G_optimizer, real, z)
    size = {
        n: sum(p.nbytes for p in net.parameters()) for n, net in (("D", state.D), ("G", state.G))
    }
    return {
        "D_size": size["D"],
        "G_size": size["G"],
        "D_in_D_step": after_D["D"],
        "G_in_D_step": after_D["G"],
        "D_in_G_step": reduced["D"] - after_D["D"],
        "G_in_G_step": reduced["G"],
    }


def count_buckets(home: Path) -> dict[str, int]:
    """Count the parts in which DDP reduces the gradients of D for 64x64 images, and D's bytes."""
    config = tiny_config(home)
    config = replace(config, network=replace(config.network, width_D=64))
    state = TrainState(config, (64, 64, 3), torch.device("cpu"))
    reduced = 0

    def hook(_, bucket: dist.GradBucket):
        nonlocal reduced
        reduced += 1
        return bf16_compress_hook(None, bucket)

    assert isinstance(state.D_objective, DistributedDataParallel)
    state.D_objective.register_comm_hook(None, hook)
    for _ in range(2):
        reduced = 0  # DDP orders the buckets by their readiness in the first step
        real, z = torch.rand(3, 3, 64, 64), torch.randn(3, 8)
        discriminator_step(state.D_objective, state.G, state.D_optimizer, real, z)
    return {"buckets": reduced, "D_bytes": sum(p.nbytes for p in state.D.parameters())}


def times_of_a_slow_rank(config: Config) -> dict[str, float]:
    """Measure a step by a clock that D's forward pass moves by 5 s on rank 1, by 1 s on rank 0."""
    state, now = TrainState(config, (16, 16, 3), torch.device("cpu")), 0.0

    def move_clock(*_: object) -> None:
        nonlocal now
        now += 5 if rank() else 1

    state.D.register_forward_hook(move_clock)
    with mock.patch.object(rank_times.time, "perf_counter", side_effect=lambda: now):
        times = RankTimes(state.D, state.device)
        for _ in range(2):
            real = times.fetch(iter([torch.rand(3, 3, 16, 16)]))
            z = torch.randn(3, 8)
            discriminator_step(state.D_objective, state.G, state.D_optimizer, real, z)
            now += 100  # until all ranks have the gradients
            generator_step(state.G_objective, state.D, state.G_optimizer, real, z)
        return times.update()


def means_of_unequal_ranks() -> dict[str, float]:
    """Average 4 values of 5 on rank 0 and 2 values of 3 on rank 1: 13 / 3."""
    means = Means()
    values = torch.full((4 if rank() == 0 else 2,), 5.0 if rank() == 0 else 3.0)
    means.add(sum_values([{"x": values}]))
    return means.sync()


class DelayedStorageContext(LocalContext):
    """Context of a storage on which rank 1 does not see the checkpoint yet."""

    def checkpoint(self) -> Path | None:
        return super().checkpoint() if rank() == 0 else None


def nan_on_rank1_at_step_15(state: TrainState, *args: Any) -> torch.Tensor:
    z = rank_latents(state, *args)
    return z * math.nan if rank() == 1 and state.step == 15 and not state.rollbacks else z


def main() -> None:
    shards, home = sys.argv[1], Path(sys.argv[2])
    with torchrun_group(timeout_s=300):
        facts: dict[str, object] = {"reduced_bytes": count_reduced_bytes(shards, home)}
        facts |= count_buckets(home)
        facts |= means_of_unequal_ranks()
        facts |= times_of_a_slow_rank(tiny_config(home))
        facts["rank0"] = broadcast_from_rank0(f"rank {rank()}")
        finished = tiny_config(home, name="two")
        launch(finished, shards)
        # If rank 1 used its own view, it would start from scratch and wait forever.
        run_worker(finished, shards, NO_ASSETS, DelayedStorageContext(finished))
        labeled = tiny_config(home, name="labels")
        launch(replace(labeled, network=replace(labeled.network, conditional=True)), shards)
        launch(regularized_config(home), shards)
        launch(augmented_config(home), shards)
        launch(tiny_config(home, name="bf16", reduce_precision="bf16"), shards)
        # Unequal slices of 6 and 7 images must be weighted by their size.
        launch(tiny_config(home, name="odd", batch_size=13), shards)
        # NaN on one rank only: both go back to the checkpoint at step 10.
        loop.rank_latents = nan_on_rank1_at_step_15
        launch(tiny_config(home, name="nan", on_nan="rollback"), shards)
        # The middle of a run that test_parity.py begins and ends on one rank.
        launch(tiny_config(home, name="elastic", kimg=0.18), shards)
        (home / f"facts-{rank()}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
