"""The plan of a run: choice of workers, checks before any resource is used, description."""

from dataclasses import replace

import pytest

from ganray.config import presets
from ganray.config.schema import Config, LossConfig, RayConfig, TrainConfig
from ganray.data.prepare import DatasetPlan
from ganray.evaluation.datasets import RunDatasets
from ganray.training.checkpoints import write_checkpoint
from ganray.training.plan import (
    Cluster,
    Workers,
    describe_plan,
    few_images_warning,
    resolve_workers,
)


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
        (LAPTOP, {"workers": "1:4"}, Workers(1, False, 1, most=4)),
        (Cluster(1, 0, 1), {}, Workers(1, False, 1)),
        (Cluster(16, 4, 1, grows=True), {}, Workers(4, True, 1)),
    ],
)
def test_all_gpus_are_used_or_two_cpu_workers(cluster, ray, expected):
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
        (LAPTOP, {"workers": "3:5"}, "ray.workers=3 need 1 CPU each"),
        (LAPTOP, {"gpu": True}, "--ray.gpu false"),
        (SERVER, {"workers": 9}, "try --ray.workers 8"),
        (LAPTOP, {"cpus_per_worker": 4}, "need 4 CPUs each"),
        (LAPTOP, {"cpus_per_worker": 4}, "try --ray.workers 1 --ray.cpus_per_worker 2"),
    ],
)
def test_too_many_workers_are_rejected_with_the_clusters_resources(cluster, ray, message):
    with pytest.raises(ValueError, match=r".") as error:
        resolve_workers(config(**ray), cluster)
    assert message in str(error.value)


def test_each_worker_has_to_fit_on_one_node():
    nodes = Cluster(16, 2, 2, sizes=((8, 2), (8, 0)))
    assert resolve_workers(config(workers=2, cpus_per_worker=8, gpu=False), nodes).count == 2
    assert resolve_workers(config(workers=2, cpus_per_worker=4), nodes).count == 2
    too_large = config(workers=1, cpus_per_worker=16, gpu=False)
    with pytest.raises(ValueError, match=r"8 CPUs on the largest node; .* --ray.cpus_per_worker 8"):
        resolve_workers(too_large, nodes)
    with pytest.raises(ValueError, match=r"try --ray.workers 1$"):
        resolve_workers(config(workers=2, cpus_per_worker=8), nodes)  # one node has no GPU


def test_an_autoscaler_of_unknown_limits_decides_on_workers_that_were_asked_for():
    head = Cluster(cpus=1, gpus=0, nodes=1, is_open_ended=True)
    assert resolve_workers(config(workers=8, gpu=True), head) == Workers(8, True, 1)
    assert resolve_workers(config(), head) == Workers(1, False, 1)
    with pytest.raises(ValueError, match=r"ray.workers=1 need 1 CPU and 1 GPU each"):
        resolve_workers(config(gpu=True), head)


def test_a_batch_smaller_than_the_world_size_is_rejected():
    with pytest.raises(ValueError, match=r"train.batch_size=4 cannot be split over 8 workers"):
        resolve_workers(config(batch_size=4, workers=8), SERVER)


def test_the_batch_of_an_elastic_run_fits_each_number_of_workers():
    elastic = config(batch_size=12, workers="1:4")
    assert resolve_workers(elastic, LAPTOP) == Workers(1, False, 1, most=4)
    packed = replace(elastic, network=replace(elastic.network, pack=2))
    with pytest.raises(ValueError, match=r"over 1 to 4 workers must be a multiple of 2 times each"):
        resolve_workers(packed, LAPTOP)
    with pytest.raises(ValueError, match=r"train.batch_size=12 cannot be split over 16 workers"):
        resolve_workers(config(batch_size=12, workers="1:16"), LAPTOP)


@pytest.mark.parametrize(
    ("batch_size", "workers", "advice"),
    [
        (256, "2:8", "240 with --ray.workers 2:6"),
        (256, "1:16", "240 with --ray.workers 1:6"),
        (256, "7:8", "224"),
        (64, "5:8", "60 with --ray.workers 5:6"),
        (16, "7:8", "14 with --ray.workers 7"),
    ],
)
def test_batches_for_elastic_runs_are_advised_near_the_given_one(batch_size, workers, advice):
    base = config(batch_size, workers=workers)
    with pytest.raises(ValueError, match=rf"; try {advice}$"):
        resolve_workers(replace(base, network=replace(base.network, pack=2)), SERVER)


def test_no_more_workers_are_chosen_than_the_batch_has_images():
    assert resolve_workers(config(batch_size=4), SERVER).count == 4
    assert resolve_workers(config(batch_size=1), LAPTOP).count == 1


def regularized(batch_size=128, workers=1, unroll=0, **network):
    base = config(batch_size, workers=workers)
    loss = replace(base.loss, unroll=unroll)
    return replace(base, network=replace(base.network, **network), loss=loss)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            regularized(100, 3, pack=4),
            "train.batch_size=100 over 3 workers must be a multiple of 12, because D processes"
            " images in groups of 4 (network.pack=4, network.minibatch_stddev=0); try 96",
        ),
        (
            regularized(2, pack=2, minibatch_stddev=2),
            "over 1 worker must be a multiple of 4",
        ),
        (regularized(unroll=5, workers=2), "loss.unroll=5 must be 0 with 2 workers"),
    ],
)
def test_batches_that_workers_cannot_split_are_rejected_with_a_way_out(run, message):
    with pytest.raises(ValueError, match=r".") as error:
        resolve_workers(run, SERVER)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_batches_that_workers_can_split_are_accepted():
    assert resolve_workers(regularized(96, 3, pack=4, minibatch_stddev=4), SERVER).count == 3
    assert resolve_workers(regularized(unroll=5), SERVER).count == 1


def describe(config: Config, images: DatasetPlan, workers: Workers) -> str:
    """Return the plan, whose lines fit the terminal, as one line."""
    text = describe_plan(RunDatasets(config, images, images), workers, "sqlite:///x")
    assert max(len(line) for line in text.splitlines() if " " in line[12:].strip()) <= 100
    return " ".join(text.split())


def test_the_plan_describes_the_run(tmp_path):
    preset = replace(presets.cpu32(), name="mine", home=tmp_path)
    shape = 32, 32, 3
    what = "procedural faces (no CelebA was given)"
    images = DatasetPlan(
        description=what,
        count=12_000,
        stored_shape=shape,
        image_shape=shape,
        location="/shards",
        bytes=36_864_000,
        classes=0,
        ready=False,
        source=tmp_path,
        procedural=True,
    )
    text = describe(preset, images, Workers(2, False, 1))
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
    assert "16 images, bce, adam, fp32 workers" in text
    on_gpu = replace(preset, train=replace(preset.train, precision="bf16", deterministic=True))
    text = describe(on_gpu, images, Workers(1, True, 1))
    assert "adam, bf16 + TF32 + deterministic + CUDA graphs workers" in text
    assert "CUDA graphs" not in describe(on_gpu, images, Workers(2, True, 1))
    many = replace(
        preset,
        network=replace(preset.network, pack=2, minibatch_stddev=4, spectral_norm=True),
        loss=LossConfig("wgan", r1_gamma=0.1, gp_weight=10, unroll=5),
        train=replace(preset.train, G_every=5, G_steps=2),
    )
    assert (
        "wgan + R1 0.1 + GP 10 + unroll 5 with lr 0.1 + pack 2 + minibatch stddev 4 + spectral norm"
        " + G every 5 steps + 2 G steps, adam"
    ) in describe(many, images, Workers(1, False, 1))
    noted = replace(images, notes=("classes: 2, the folders cat, dog", "skipped files: 3 .txt"))
    text = describe(preset, noted, Workers(2, False, 1))
    assert "(no CelebA was given); classes: 2, the folders cat, dog; skipped files: 3 .txt" in text
    write_checkpoint({"step": 1000}, preset, preset.run_folder() / "checkpoint_0000001000")
    text = describe(preset, images, Workers(2, False, 1))
    assert "run mine (goes on from 16 kimg)" in text
    few = replace(images, count=3)
    datasets = RunDatasets(preset, few, few)
    assert few_images_warning(datasets) == (
        "3 images for a batch of 16: every step shows D all of them, about 5.3 times, and G can"
        " only learn them by heart"
    )
    assert few_images_warning(RunDatasets(preset, images, images)) is None
    text = describe(preset, few, Workers(1, False, 1, most=4))
    assert "1 to 4 DDP workers, as nodes come and go, 1 core each (gloo)" in text
    assert "evaluation none, too few to compare with: 3 images" in text
    for count, evaluation in (
        (79, "none, too few to compare with: 79 images"),
        # By their pixels, without a classifier:
        (159, "159 samples every 15 kimg, no final report, as it needs two sets of 80 images res"),
        (160, "80 samples every 15 kimg, no final report, as it needs two sets of 80 images that"),
    ):
        labeled = replace(images, count=count, has_classifier=True)
        assert f"evaluation {evaluation}" in describe(preset, labeled, Workers(1, False, 1))
    report_only = replace(preset, evaluation=replace(preset.evaluation, samples=0))
    text = describe(report_only, replace(labeled, count=300), Workers(1, False, 1))
    assert "none, too few to compare with: 300 images, half of which train the classifier" in text
    some = replace(images, count=300)
    text = describe(preset, some, Workers(1, False, 1))
    assert "300 samples every 15 kimg, final report on 150 samples" in text
    assert "150 samples (not 5,000, as it needs two sets of images) results" in text
    halved = replace(images, has_classifier=True)
    text = describe(preset, halved, Workers(1, False, 1))
    assert "final report on 3,000 samples (not 5,000, as it needs two sets of images that" in text
    plenty = replace(halved, count=20_000)
    assert "5,000 samples results" in describe(preset, plenty, Workers(1, False, 1))
    halved = replace(some, has_classifier=True)
    text = describe(preset, halved, Workers(1, False, 1))
    assert "evaluation 150 samples every 15 kimg, no final report" in text  # 75 are too few
