"""Run by torchrun in test_parity.py: trains, and counts what DDP puts on the wire.

torchrun --nproc-per-node 2 two_ranks.py SHARDS HOME
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from ganray.data.reader import ShardedDataset
from ganray.distributed import Means, broadcast_from_rank0, rank, torchrun_group, world_size
from ganray.evaluation.reference import NO_ASSETS
from ganray.gan.step import discriminator_step, generator_step
from ganray.training.context import LocalContext
from ganray.training.launch import launch, run_worker
from ganray.training.state import TrainState
from tests.conftest import cured_config, tiny_config


def bytes_on_the_wire(shards: str, home: Path) -> dict[str, int]:
    """Gradient bytes that one D step and one G step hand to all_reduce."""
    config = tiny_config(home)
    state = TrainState(config, ShardedDataset(Path(shards)).image_shape, torch.device("cpu"))
    sent = {"D": 0, "G": 0}

    def counting(name):
        def hook(_, bucket: dist.GradBucket):
            sent[name] += bucket.buffer().nbytes
            return (
                dist.all_reduce(bucket.buffer(), async_op=True)
                .get_future()
                .then(lambda done: done.value()[0] / world_size())
            )

        return hook

    for name, objective in (("D", state.D_objective), ("G", state.G_objective)):
        assert isinstance(objective, DistributedDataParallel)
        objective.register_comm_hook(None, counting(name))
    real, z = torch.rand(3, 3, 16, 16), torch.randn(3, 8)
    discriminator_step(state.D_objective, state.G, state.D_optimizer, real, z)
    after_D = dict(sent)
    generator_step(state.G_objective, state.D, state.G_optimizer, real, z)
    size = {
        n: sum(p.nbytes for p in net.parameters()) for n, net in (("D", state.D), ("G", state.G))
    }
    return {
        "D_size": size["D"],
        "G_size": size["G"],
        "D_in_D_step": after_D["D"],
        "G_in_D_step": after_D["G"],
        "D_in_G_step": sent["D"] - after_D["D"],
        "G_in_G_step": sent["G"],
    }


def means_of_unequal_ranks() -> dict[str, float]:
    """Rank 0 brings 4 images that score 5, rank 1 brings 2 that score 3: the mean is 13 / 3."""
    means = Means(torch.device("cpu"))
    means.add({"x": torch.full((4 if rank() == 0 else 2,), 5.0 if rank() == 0 else 3.0)})
    return means.sync()


class Blind(LocalContext):
    """Rank 1 sees no checkpoint, as on storage where the news takes its time."""

    def latest_checkpoint(self) -> Path | None:
        return super().latest_checkpoint() if rank() == 0 else None


def main() -> None:
    shards, home = sys.argv[1], Path(sys.argv[2])
    with torchrun_group():
        facts: dict[str, object] = {"wire": bytes_on_the_wire(shards, home)}
        facts |= means_of_unequal_ranks()
        facts["leader"] = broadcast_from_rank0(f"rank {rank()}")
        finished = tiny_config(home, name="two")
        launch(finished, shards)
        # Or rank 1 would begin anew, alone, and wait for ever.
        run_worker(finished, shards, NO_ASSETS, Blind(finished.run_folder(), 3))
        labelled = tiny_config(home, name="labels")
        launch(replace(labelled, network=replace(labelled.network, conditional=True)), shards)
        launch(cured_config(home), shards)
        # 12 images over 5 and 7: unequal slices must weigh right.
        launch(tiny_config(home, name="odd", batch_size=13), shards)
        (home / f"facts-{rank()}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
