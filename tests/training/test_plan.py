"""What a run will hold, decided and refused before anything is held."""

from dataclasses import replace

import pytest
import torch

from ganray.config import presets
from ganray.config.schema import Config, LossConfig, RayConfig, TrainConfig
from ganray.data.prepare import DatasetPlan
from ganray.evaluation.reference import RunDatasets
from ganray.training.plan import Cluster, Workers, describe_plan, resolve_workers, step_bytes


def config(batch_size=128, **ray):
    return Config(ray=RayConfig(**ray), train=TrainConfig(batch_size=batch_size))


LAPTOP, SERVER = Cluster(cpus=2, gpus=0, nodes=1), Cluster(cpus=64, gpus=8, nodes=1)


@pytest.mark.parametrize(
    ("cluster", "ray", "expected"),
    [
        (LAPTOP, {}, Workers(2, False, 1)),
        (SERVER, {}, Workers(8, True, 1)),
        (SERVER, {"gpu": False}, Workers(2, False, 1)),
        (SERVER, {"workers": 3, "cpus_per_worker": 4}, Workers(3, True, 4)),
        (Cluster(1, 0, 1), {}, Workers(1, False, 1)),
        (Cluster(16, 4, 1, grows=True), {}, Workers(4, True, 1)),
    ],
)
def test_all_gpus_else_two_cpu_workers(cluster, ray, expected):
    assert resolve_workers(config(**ray), cluster) == expected


@pytest.mark.parametrize(
    ("cluster", "ray", "message"),
    [
        (
            LAPTOP,
            {"workers": 5},
            "ray.workers=5 need 1 CPU each, but the cluster has 1 node, 2 CPUs",
        ),
        (LAPTOP, {"workers": 5}, "try --ray.workers 2"),
        (LAPTOP, {"gpu": True}, "--ray.gpu false"),
        (SERVER, {"workers": 9}, "try --ray.workers 8"),
        (LAPTOP, {"cpus_per_worker": 4}, "need 4 CPUs each"),
        (LAPTOP, {"cpus_per_worker": 4}, "try --ray.workers 1 --ray.cpus_per_worker 2"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_what_it_has(cluster, ray, message):
    with pytest.raises(ValueError, match=r".") as error:
        resolve_workers(config(**ray), cluster)
    assert message in str(error.value)


def test_a_batch_smaller_than_the_world_is_refused():
    with pytest.raises(ValueError, match=r"train.batch_size=4 cannot be split over 8 workers"):
        resolve_workers(config(batch_size=4, workers=8), SERVER)


def test_no_more_workers_are_chosen_than_a_batch_has_images():
    assert resolve_workers(config(batch_size=4), SERVER).count == 4
    assert resolve_workers(config(batch_size=1), LAPTOP).count == 1


def apply_regularizers(batch_size=128, workers=1, unroll=0, **network):
    base = config(batch_size, workers=workers)
    loss = replace(base.loss, unroll=unroll)
    return replace(base, network=replace(base.network, **network), loss=loss)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            apply_regularizers(100, 3, pack=4),
            "train.batch_size=100 over 3 workers must be a multiple of 12, as D looks at 4 images"
            " together (network.pack=4, network.minibatch_stddev=0); try 96",
        ),
        (
            apply_regularizers(2, pack=2, minibatch_stddev=2),
            "over 1 worker must be a multiple of 4",
        ),
        (apply_regularizers(unroll=5, workers=2), "loss.unroll=5 must be 0 with 2 workers"),
    ],
)
def test_what_the_workers_would_part_is_refused_with_a_way_out(asked, message):
    with pytest.raises(ValueError, match=r".") as error:
        resolve_workers(asked, SERVER)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_batch_that_no_worker_parts_goes_through():
    assert resolve_workers(apply_regularizers(96, 3, pack=4, minibatch_stddev=4), SERVER).count == 3
    assert resolve_workers(apply_regularizers(unroll=5), SERVER).count == 1


def test_the_plan_names_every_decision(tmp_path):
    preset = replace(presets.cpu32(), name="mine", home=tmp_path)
    shape = 32, 32, 3
    what = "procedural faces (no CelebA was given)"
    images = DatasetPlan(
        what, True, tmp_path, 12_000, shape, shape, "/shards", 36_864_000, False, 0
    )
    text = describe_plan(RunDatasets(preset, images, images), Workers(2, False, 1), "sqlite:///x")
    for part in (
        "--name mine",
        "12,000 images",
        "no CelebA",
        "32x32x3 raw, 35 MiB",
        "gloo",
        "sqlite:///x",
    ):
        assert part in text
    assert f"{preset.train.steps():,} steps" in text
    assert "32 images, bce, adam" in text
    many = replace(
        preset,
        network=replace(preset.network, pack=2, minibatch_stddev=4, spectral_norm=True),
        loss=LossConfig("wgan", r1_gamma=0.1, gp_weight=10, unroll=5),
        train=replace(preset.train, G_every=5, G_steps=2),
    )
    assert (
        "wgan + R1 0.1 + GP 10 + unroll 5 by 0.1 + pack 2 + minibatch stddev 4 + spectral norm"
        " + G every 5 steps + 2 G steps, adam"
    ) in describe_plan(RunDatasets(many, images, images), Workers(1, False, 1), "sqlite:///x")


def test_the_memory_estimate_follows_batch_and_weights(tmp_path):
    preset, shape = presets.dcgan64(), (64, 64, 3)
    one, two = (step_bytes(preset, shape, images) for images in (64, 128))
    weights = 2 * one - two  # what does not grow with the batch
    G, D = 3_576_704, 2_765_568  # the published DCGAN
    assert weights == pytest.approx(4 * (4 * (G + D) + G), rel=0.01)
    mlp = step_bytes(presets.mlp(), (218, 178, 3), 1)
    assert mlp > 4 * 5 * 300 * 116_412


def test_the_estimate_is_near_what_a_step_really_keeps():
    """The same count on real tensors: the meta device neither misses nor invents any."""
    from ganray.gan import networks
    from ganray.gan.step import DiscriminatorObjective

    preset = presets.cpu32()
    G, D = networks.build(preset.network, preset.latent, (32, 32, 3))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    real = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        fake = G(torch.randn(8, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = DiscriminatorObjective(D, preset.loss)(real, fake)
    del result
    weights = [*G.parameters(), *D.parameters()]
    for tensor in weights:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    held = 4 * sum(p.nbytes for p in weights) + sum(p.nbytes for p in G.parameters())
    assert step_bytes(preset, (32, 32, 3), 8) == pytest.approx(held + sum(kept.values()), rel=0.2)
