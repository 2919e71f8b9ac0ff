"""The jobs: ``python jobs/NAME.py ...`` and, from an installed package, ``ganray NAME ...``.

Each function's docstring is the description in its --help, up to the first examples, and in full in
its --help all. Torch, Ray and MLflow take seconds to import, so functions import them
only after the options are parsed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence

from ganray import log
from ganray.config import cli, help
from ganray.config.commands import (
    DeployConfig,
    EvaluateConfig,
    ExploreConfig,
    ShardConfig,
    check_run_names,
)
from ganray.config.presets import CELEBA, MNIST, STACKED, SWEEPS
from ganray.config.schema import Config
from ganray.data.sources import NAMES
from ganray.errors import UserError, did_you_mean
from ganray.sweeps.axes import parse_axis


def celeba(argv: Sequence[str]) -> None:
    """Train a GAN on faces, distributed by Ray Train, and log everything to MLflow.

    Without options: CelebA if --data.root names it, else procedural faces; every GPU of the
    cluster, else one CPU core; the preset that fits the hardware.

        python jobs/celeba.py
        python jobs/celeba.py dcgan64 --data.root ~/celeba
        ray job submit --working-dir . -- python jobs/celeba.py
        torchrun --nproc-per-node 2 jobs/celeba.py --launcher torch
    """
    _train(cli.parse(argv, CELEBA, _preset_for_hardware, _help(celeba), default="cpu32"))


def mnist(argv: Sequence[str]) -> None:
    """Train the source text's GANs on MNIST, one preset per step of the text.

    Without options: the preset normal-100 on MNIST, downloaded once (11 MB).

        python jobs/mnist.py
        python jobs/mnist.py first --data.root ~/mnist
        ray job submit --working-dir . -- python jobs/mnist.py long

    The source text is the introduction to GANs that ganray grew from. MNIST is read from
    --data.root, or downloaded into the home folder; without a network, scikit-learn's 8x8 digits
    are used instead. The presets stacked-* train on stacked MNIST: three digits per image, 1,000
    modes.

        python jobs/mnist.py conditional --train.rng_seed 3
        python jobs/mnist.py first --check_discriminator
        python jobs/mnist.py stacked-t3-quarter
    """
    presets, default = MNIST | STACKED, "normal-100"
    _train(cli.parse(argv, presets, lambda _: default, _help(mnist), default))


def sweep(argv: Sequence[str]) -> None:
    r"""Sweep latents, optimizers or any other option: many runs on Ray Tune, compared in MLflow.

    Trains every combination of the axes' levels with several seeds and reports a ranking with
    confidence intervals, in the terminal, as an HTML page, and in MLflow.

        python jobs/sweep.py
        python jobs/sweep.py --sweep.axis latent.size=1,10,100 \
            --sweep.axis optimizer=sgd,adam
        python jobs/sweep.py cpu32 --sweep.seeds 3 \
            --sweep.axis loss.name=bce,hinge,relativistic
        python jobs/sweep.py --power
        python jobs/sweep.py --resume

    The report also has pairwise differences, the share of the variance that each axis explains,
    heat maps, and samples of every setting.

    Without an axis: MNIST, latents of different mean, spread and shape x size 1, 10, 100 x three
    optimizers x 5 seeds. An axis varies an option of the data, latents, networks, loss, optimizer
    or training; several options joined by +; `optimizer` (named optimizers with learning rates of
    their own) or `rate` (a factor on the learning rates). --power prints how small a difference a
    number of seeds finds.

        python jobs/sweep.py --sweep.axis \
            latent.distribution+latent.scaling=uniform+raw,uniform+centered
        python jobs/sweep.py --sweep.axis data.images=500,5000,null
        python jobs/sweep.py --sweep.design tpe --sweep.settings 30 \
            --sweep.axis rate=0.1..10
        ray job submit --working-dir . -- python jobs/sweep.py --name latents \
            --home /mnt/ganray
    """
    presets = SWEEPS | CELEBA | MNIST | STACKED
    config, options = cli.parse_sweep(argv, presets, "latents", _help(sweep))
    for text in [] if options.resume else options.axis:
        parse_axis(text, config, cli.parse_value)
    log.configure(config.log_level)
    if options.power:
        from ganray.sweeps.power import log_power

        return log_power(config, options, cli.parse_value)
    from ganray.commands.sweep import sweep as run_sweep

    run_sweep(config, options, cli.parse_value)


def evaluate(argv: Sequence[str]) -> None:
    """Report how much of the data a trained generator, or any set of samples, covers.

    Compares samples with reference images by the features of a classifier that is trained on the
    data's own labels (once, then kept in the home): modes, recall, coverage, Vendi score,
    duplicates, distances; each with its 95 % interval, the score of other real images and that of
    an ideal generator. Prints a table and a diagnosis, writes report.json and report.png, and adds
    both to the artifacts of the MLflow run.

    RUN is the name of a run, a run or checkpoint folder, an MLflow run id, or a models:/ URI;
    without one, the runs are listed. Samples of other generators are given by --images, and the
    real images by --against.

        python jobs/evaluate.py faces
        python jobs/evaluate.py faces --samples 10000
        python jobs/evaluate.py faces --register generator
        python jobs/evaluate.py normal --against uniform
        python jobs/evaluate.py ~/.ganray/runs/faces/best_coverage --out report
        python jobs/evaluate.py --images samples.npz --against ~/pictures --size 64
    """
    options = cli.parse_command(argv, EvaluateConfig, ("run",), {}, _help(evaluate))
    if not options.images:
        check_run_names([options.run, options.against], options.home, options.storage)
    log.configure(options.log_level)
    from ganray.commands.evaluate import evaluate as run_evaluate

    run_evaluate(options)


def explore(argv: Sequence[str]) -> None:
    r"""Explore the latent space of a trained generator.

    Draws random samples, interpolations between pairs of latents (straight, and along the shell
    that the generator was trained on), sums, differences and products of latents, walks in the
    neighborhood of a latent, and an animated closed walk, as PNGs and as artifacts of the run.

    With --count, --project or --export it draws none of these, but writes many images for other
    tools, projects an image to its latent, or exports the generator.

    RUN is the name of a run, a run or checkpoint folder, an MLflow run id, or a models:/ URI;
    without one, the runs are listed.

        python jobs/explore.py faces
        python jobs/explore.py ~/.ganray/runs/faces/best_coverage --out pictures
        python jobs/explore.py 9a4b6726c96d46158af271b9a0512236 \
            --tracking_uri http://server:5000
        python jobs/explore.py models:/generator/1 --animation mp4 --seconds 20
        python jobs/explore.py digits --label 7 --rng_seed 3 --pairs 6
        python jobs/explore.py faces --count 50000 --out samples
        python jobs/explore.py faces --project me.jpg
        python jobs/explore.py faces --export onnx
    """
    options = cli.parse_command(argv, ExploreConfig, ("run",), {}, _help(explore))
    check_run_names([options.run], options.home, options.storage)
    log.configure(options.log_level)
    from ganray.commands.explore import explore as run_explore

    run_explore(options)


def shard(argv: Sequence[str]) -> None:
    """Convert a set of images to HDF5 shards, the form that ganray reads, or verify shards.

    A run converts its images by itself. Do it here to choose options that a run does not have, to
    convert once for many machines (any URL can serve shards: --data.root s3://...), or to verify a
    copy. An interrupted conversion resumes, and its result does not depend on the number of
    processes.

        python jobs/shard.py celeba ~/celeba --out ~/celeba-64 --size 64
        python jobs/shard.py celeba ~/celeba --out ~/celeba-jpeg --encoding jpeg
        python jobs/shard.py folder ~/pictures --out ~/pictures-128 --size 128
        python jobs/shard.py verify ~/celeba-64
    """
    sources = NAMES | {
        "faces": "procedural faces in CelebA's layout: draws --faces of them into PATH",
        "verify": "convert nothing, but read all shards in PATH and compare every digest",
    }
    options = cli.parse_command(argv, ShardConfig, ("source", "path"), sources, _help(shard))
    log.configure(options.log_level)
    from ganray.commands.shard import shard as run_shard

    run_shard(options)


def deploy(argv: Sequence[str]) -> None:
    r"""Print the file that runs a job on Kubernetes or Slurm.

    The job trains on every GPU of the nodes, in a Ray cluster of its own. Nothing is submitted, and
    the file holds no passwords. A Ray cluster that stays, on AWS, Google Cloud or machines of your
    own, is described by cluster.yaml or one of its variants instead.

        python jobs/deploy.py rayjob --image registry.example.com/ganray --nodes 2 \
            --storage shared --tracking_uri http://mlflow:5000 > faces.yaml
        python jobs/deploy.py slurm --nodes 4 --gpus 8 --cpus 64 \
            --storage /scratch/ganray --tracking_uri http://mlflow:5000 > faces.sh
        python jobs/deploy.py slurm --job "sweep --sweep.seeds 3" --name latents \
            --storage /scratch/ganray --tracking_uri http://mlflow:5000 > latents.sh
    """
    targets = {
        "rayjob": "a RayJob of KubeRay, for kubectl apply",
        "slurm": "a script for sbatch",
    }
    options = cli.parse_command(argv, DeployConfig, ("target",), targets, _help(deploy))
    log.configure(options.log_level)
    from ganray.commands.deploy import deploy as print_file

    print_file(options)


JOBS: dict[str, Callable[[Sequence[str]], None]] = {
    job.__name__: job for job in (celeba, mnist, sweep, evaluate, explore, shard, deploy)
}


def main() -> None:
    """Run the job that the first argument names."""
    cli.run(_dispatch)


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        jobs = help.table({name: _help(job).splitlines()[0] for name, job in JOBS.items()})
        print(f"usage: ganray JOB [...]; ganray JOB --help describes a job\n\n{jobs}")
        return
    name, *rest = argv
    if name not in JOBS:
        similar = did_you_mean(name, JOBS)
        raise UserError(f"{name!r} is not a job; name one of {', '.join(JOBS)}{similar}")
    sys.argv[:2] = [f"ganray {name}"]
    JOBS[name](rest)


def _train(config: Config) -> None:
    log.configure(config.log_level)
    if config.launcher == "ray" and not (config.dry_run or config.check_discriminator):
        from ganray.integrations import ray_cluster

        ray_cluster.start(config.ray)
    from ganray.commands import train

    train.run(config)


def _preset_for_hardware(config: Config) -> str:
    """Return the full-width network if the cluster has a GPU, else the narrow one."""
    from ganray.integrations import ray_cluster

    return "dcgan64" if ray_cluster.cluster_resources(config.ray).gpus else "cpu32"


def _help(job: Callable[[Sequence[str]], None]) -> str:
    return inspect.getdoc(job) or ""


if __name__ == "__main__":
    main()
