"""Options of the jobs other than training: flat dataclasses, validated on creation.

Uses the standard library only. The options of a training run are in ``ganray.config.schema``.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ganray.config.schema import (
    Encoding,
    FeatureNetwork,
    LabelSource,
    Split,
    absolute,
    require,
    require_positive,
)
from ganray.errors import UserError, did_you_mean
from ganray.log import LogLevel


def home_folder(home: Path | None) -> Path:
    """Return the absolute home folder: `home`, else $GANRAY_HOME, else ~/.ganray."""
    return absolute("--home", home or Path(os.environ.get("GANRAY_HOME", "~/.ganray")))


def command_line(job: str, *words: object, home: Path) -> str:
    """Return the command line of a job, quoted for a shell, with the home unless it is the default.

    The job is named by the path, or by the installed command, that started this one.
    """
    script = Path(sys.argv[0]).parent / f"{job}.py"  # argv[0] is '' in an interpreter
    if sys.argv[0].startswith("ganray "):
        program: list[object] = ["ganray", job]
    else:
        program = ["python", script if script.is_file() else f"jobs/{job}.py"]
    options = [] if home == home_folder(None) else ["--home", home]
    return shlex.join(map(str, [*program, *words, *options]))


def check_run_names(names: Iterable[str | None], home: Path | None, storage: str | None) -> None:
    """Raise UserError for a name that no run has, before the imports that loading one takes."""
    runs = home_folder(home) / "runs"
    for name in filter(None, names):
        places = Path(name).expanduser(), runs / name
        is_known = name.startswith("models:/") or re.fullmatch("[0-9a-f]{32}", name)
        if not (storage or is_known or any(place.exists() for place in places)):
            raise unknown_run(name, runs.parent, str(runs.parent))


def unknown_run(name: str, home: Path, places: str) -> UserError:
    """Return the error that lists the names of the runs there are in a home."""
    runs = sorted({path.parent.name for path in home.glob("runs/*/checkpoint_*[0-9]")})
    return UserError(
        f"RUN={name!r} must be a checkpoint folder, a run folder with a checkpoint, an MLflow run"
        f" id (32 hex digits), a models:/ URI, or the name of a run in {places}:"
        f" {', '.join(runs) or 'none is there; give --home or --storage'}{did_you_mean(name, runs)}"
    )


@dataclass(frozen=True)
class ShardConfig:
    """Options of jobs/shard.py."""

    source: str = ""
    """Format of the images, or `verify`."""
    path: Path | None = None
    """Folder or file of the images; `digits` needs none."""
    out: Path | None = None
    """Folder for the shards; created if missing."""
    size: int = 0
    """Resize and crop to squares with this side in pixels. 0: the original size."""
    encoding: Encoding = "raw"
    """Form of the images in shards. raw: pixels, the fastest. jpeg: the original files to the byte,
    16 times smaller."""
    split: Split = "all"
    """Split of the source's own partition."""
    images: int | None = None
    """Number of images of the split, from the first on. None: all."""
    processes: int | None = None
    """Number of processes, which does not change the shards. None: one per core."""
    download: bool = False
    """Let torchvision download the source into `path` if it is not there."""
    missing: Literal["skip", "error"] = "skip"
    """Whether images and lists of CelebA may be missing."""
    labels: LabelSource = "auto"
    """Source of the classes. auto, of a folder: StyleGAN's dataset.json if it has labels, else
    the top folders, if there are several and they are no numbered batches; of an HDF5 file: the
    labels beside the images."""
    bad_images: Literal["error", "skip"] = "error"
    """Treatment of images that cannot be read; the log names each of them."""
    background: Literal["white", "black", "gray"] = "white"
    """Color behind what is transparent in the images of a folder."""
    dataset: str | None = None
    """Path of the images in an HDF5 file. None: found by name or dimensions."""
    faces: int = 8_000
    """Number of faces to draw, for faces."""
    stacked: int | None = None
    """Number of training images, for stacked-mnist. None: 128,000."""
    rng_seed: int = 0
    """Seed from which faces, or the digits of each image of stacked-mnist, follow."""
    log_level: LogLevel = "info"
    """Lowest level of log messages that are printed."""

    def __post_init__(self) -> None:
        require_positive(self, "--", "images", "processes", "stacked", "faces")
        require("--rng_seed", self.rng_seed, "not be negative", self.rng_seed >= 0)
        require("--size", self.size, "be 0 or at least 8", self.size == 0 or self.size >= 8)


@dataclass(frozen=True)
class ExploreConfig:
    """Options of jobs/explore.py."""

    run: str = ""
    """Checkpoint or run folder, run name, MLflow run id, or models:/ URI."""
    out: Path | None = None
    """Folder for the files. None: `explore` in the run folder, or explore/NAME in the home."""
    home: Path | None = None
    """Folder of the runs. None: $GANRAY_HOME, else ~/.ganray."""
    storage: str | None = None
    """URL of the runs, if they were trained with --storage. None: they are in the home."""
    tracking_uri: str | None = None
    """MLflow store or server. None: the run's own, else $MLFLOW_TRACKING_URI, else the home's."""
    rng_seed: int = 0
    """Seed of the latents. A larger number of pairs adds to the same first pairs."""
    pairs: int = 4
    """Number of latent pairs for interpolation and arithmetic, and of neighborhood walks."""
    steps: int = 12
    """Images from one latent to the other, including both."""
    degrees: float = 45
    """Angle at the end of a neighborhood walk. Two random latents are about 90 degrees apart if
    normal, 41 if uniform."""
    label: int | None = None
    """Conditional generators: class of all images. None: one class per row."""
    psi: float = 1
    """Truncation: factor in [0, 1] on the distance of latents from their mean, for more typical but
    less varied images. 1: none. It has no effect on an unconditional dcgan, which ignores |z|,
    unless the mean is not 0."""
    count: int | None = None
    """Number of images to write to `images` in the output folder, each as a PNG file, for other
    tools to measure. They follow from rng_seed, psi and label. Conditional generators: the classes
    cycle unless --label names one, and dataset.json has the labels. None: draw pictures."""
    project: Path | None = None
    """Image file whose latent is searched, so that its sample is as similar as possible: writes
    projection.png and the latent, projection.npy. Conditional generators need --label. None: draw
    pictures."""
    export: Literal["onnx", "safetensors"] | None = None
    """Format in which the averaged generator is written, as G.onnx or G.safetensors, for other
    programs; needs `pip install onnx onnxscript` or `pip install safetensors`. None: draw
    pictures."""
    animation: Literal["gif", "mp4", "none"] = "gif"
    """Format of the closed walk; mp4 needs `pip install 'imageio[ffmpeg]'`."""
    fps: int = 10
    """Frames per second of the animation."""
    seconds: float = 8
    """Length of the animation."""
    log_level: LogLevel = "info"
    """Lowest level of log messages that are printed."""

    def __post_init__(self) -> None:
        require("--rng_seed", self.rng_seed, "not be negative", self.rng_seed >= 0)
        require_positive(self, "--", "pairs", "count")
        require("--steps", self.steps, "be at least 2, for both ends", self.steps >= 2)
        require("--psi", self.psi, "lie in [0, 1]", 0 <= self.psi <= 1)
        given = [x for x in ("count", "project", "export") if getattr(self, x) is not None]
        if len(given) > 1:
            raise UserError(f"--{' and --'.join(given)} cannot be combined; use one at a time")
        if self.psi != 1 and given not in ([], ["count"]):
            raise UserError(f"--psi={self.psi} has no effect on --{given[0]}; leave out one")
        require("--degrees", self.degrees, "lie in (0, 180]", 0 < self.degrees <= 180)
        require("--fps", self.fps, "lie in [1, 50]", 1 <= self.fps <= 50)
        rule = f"lie in (0, {600 / self.fps:g}] at {self.fps} fps, as all frames are kept in memory"
        require("--seconds", self.seconds, rule, 0 < self.seconds <= 600 / self.fps)
        label = self.label
        require("--label", label, "not be negative", label is None or label >= 0)

    def frames(self) -> int:
        """Return the number of frames of the animation."""
        return max(2, round(self.fps * self.seconds))


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of jobs/evaluate.py."""

    run: str = ""
    """Checkpoint or run folder, run name, MLflow run id, or models:/ URI."""
    against: str | None = None
    """Another run to compare with. Both are compared with the reference images of the first, by its
    `evaluation.features`. With --images: the reference images, in the same forms."""
    images: str | None = None
    """Samples of any generator, instead of RUN: a folder or zip of images, a .npz, .npy or HDF5
    file with one array of them, or a folder or URL of shards."""
    size: int = 0
    """With --images: side in pixels to which samples and references are resized and cropped. 0:
    their original size; samples of another size are resized to the references, if these are
    square."""
    features: FeatureNetwork = "classifier"
    """With --images: network that computes the features. classifier: trained on the references, if
    they have a folder for each class, or labels. inception (FID, KID), dinov2 (FD-DINOv2) and clip
    (CMMD) need `weights`."""
    weights: str | None = None
    """With --images: file of the network's weights, as --evaluation.weights of training."""
    samples: int = 5_000
    """Number of samples, and of reference images; fewer if there are fewer reference images."""
    report: Literal["short", "full"] = "short"
    """Metrics in the table. short: at most eight. full: all; report.json always has all."""
    resamples: int = 50
    """Number of subsamples from which confidence intervals are computed."""
    out: Path | None = None
    """Folder for the report. None: `evaluation` in the run folder, or evaluation/NAME in the home,
    and in it a folder named after the checkpoint unless that is the newest. NAME is the name of the
    run, or that of the file or folder of samples. An earlier report of that name is overwritten."""
    home: Path | None = None
    """Folder of the runs. None: $GANRAY_HOME, else ~/.ganray."""
    storage: str | None = None
    """URL of the runs, if they were trained with --storage. None: they are in the home."""
    tracking_uri: str | None = None
    """MLflow store or server. None: the run's own, else $MLFLOW_TRACKING_URI, else the home's."""
    data_root: str | None = None
    """Location of the data, if it is not where the run found them."""
    register: str | None = None
    """Name of a model in MLflow's registry, of which RUN's generator becomes a version. The version
    gets the alias `best` if its coverage is higher than that of the version that has the alias, and
    both were compared with the same reference images by the same extractor."""
    log_level: LogLevel = "info"
    """Lowest level of log messages that are printed."""

    def __post_init__(self) -> None:
        require("--samples", self.samples, "be at least 80", self.samples >= 80)
        require("--resamples", self.resamples, "be at least 20", self.resamples >= 20)
        require("--size", self.size, "be 0 or at least 8", self.size == 0 or self.size >= 8)
        if self.images and self.run:
            raise UserError(f"--images={self.images} takes the place of RUN={self.run}; give one")
        if self.images and not self.against:
            raise UserError(
                f"--images={self.images} needs the real images to compare with: --against FOLDER"
            )
        if self.register is not None:
            rule = "consist of letters, digits, '_', '.' and '-'"
            is_valid = bool(re.fullmatch(r"[\w.-]+", self.register))
            require("--register", self.register, rule, is_valid)
            if not (self.run or self.images):
                raise UserError(f"--register={self.register} needs RUN, which is to be registered")
        others = (
            ("data_root", "tracking_uri", "register")
            if self.images
            else ("size", "features", "weights")
        )
        for name in others:
            if getattr(self, name) != getattr(type(self), name):
                kind = "RUN, and cannot be given with --images" if self.images else "--images"
                raise UserError(f"--{name}={getattr(self, name)} is an option of {kind}")
        if self.against and not (self.run or self.images):
            raise UserError(
                f"--against={self.against} needs what to compare with it: RUN, or --images FOLDER"
            )
        if self.features != "classifier" and not self.weights:
            raise UserError(
                f"--features={self.features} needs a file of its weights; give --weights FILE"
            )


@dataclass(frozen=True)
class DeployConfig:
    """Options of jobs/deploy.py."""

    target: str = ""
    """Kind of cluster."""
    job: str = "celeba"
    """Job to run, with its options, such as 'celeba dcgan64 --train.kimg 25000'. Its name and home
    are those of this command."""
    name: str = "faces"
    """Name of the run and of the cluster's job: lower-case letters, digits and dashes."""
    image: str | None = None
    """Container image with ganray on every node. slurm: for the Pyxis plugin, also the path of a
    .sqsh file; the container sees nothing of the host but --storage, so data.root must lie there.
    None: the environment in which sbatch is called."""
    nodes: int = 1
    """Number of nodes that train."""
    gpus: int = 1
    """GPUs of each node. 0: train on CPU cores, by as many workers as --job says."""
    cpus: int = 8
    """CPU cores of each node. rayjob: with 4 GiB of memory each."""
    storage: str | None = None
    """Storage that all nodes share, for shards, runs and checkpoints. rayjob: the name of a
    PersistentVolumeClaim with the access mode ReadWriteMany, or a URL. slurm: a folder."""
    tracking_uri: str | None = None
    """Address of an MLflow server that the cluster reaches, without a password: rayjob takes that
    from a Secret, slurm from the environment, as the printed file says."""
    log_level: LogLevel = "info"
    """Lowest level of log messages that are printed."""

    def __post_init__(self) -> None:
        require_positive(self, "--", "nodes", "cpus")
        require("--gpus", self.gpus, "not be negative", self.gpus >= 0)


@dataclass(frozen=True)
class SweepConfig:
    """Options of jobs/sweep.py: what is varied, and how."""

    axis: list[str] = field(default_factory=list)
    """Axis of the sweep, such as latent.size=1,10,100; repeat the option for further axes.
    FIELD+FIELD=A+B,C+D varies fields together. `optimizer` takes named optimizers with learning
    rates of their own, `rate` factors on both learning rates; searches also take a range,
    rate=0.1..10. Default: the sweep of latents, sizes and optimizers."""
    seeds: int = 5
    """Runs of each setting, which differ in train.rng_seed only. Intervals are over seeds."""
    design: Literal["grid", "random", "sobol", "tpe", "asha", "pbt"] = "grid"
    """Which settings are run. grid: all. random, sobol: `settings` of them. tpe, asha and pbt
    search one good setting: they choose or stop runs by their results, so their means are
    biased."""
    settings: int | None = None
    """Number of settings. random, sobol, asha: of `seeds` runs each (asha: all by default). tpe,
    pbt: of runs, 20 by default."""
    metric: Literal["recall", "coverage", "vendi_share"] = "coverage"
    """Metric that tpe, asha and pbt maximize."""
    concurrent: int | None = None
    """Maximum number of runs at a time; by default as many as the cluster has room for. tpe and pbt
    cannot change it on resume."""
    trials_per_gpu: int = 1
    """Runs of one worker each that share a GPU."""
    retries: int = 2
    """How often a crashed run is continued from its last checkpoint before it counts as failed."""
    resume: bool = False
    """Resume the sweep named by --name, by default the newest."""
    power: bool = False
    """Print the differences that 3, 5, 10 and 20 seeds find, and train nothing. The spread between
    seeds is that of the finished sweep named by --name, by default the newest, else that of
    MNIST."""

    def __post_init__(self) -> None:
        if self.power and self.resume:
            raise UserError("--power plans a new sweep; leave out --resume")
        require_positive(self, "sweep.", "seeds", "settings", "concurrent", "trials_per_gpu")
        require("sweep.retries", self.retries, "not be negative", self.retries >= 0)

    @property
    def num_trials(self) -> int:
        """Number of runs of tpe and pbt."""
        return self.settings or 20

    @property
    def is_adaptive(self) -> bool:
        """Whether settings are chosen during the sweep, so that no plan lists them in advance."""
        return self.design in ("tpe", "pbt")

    @property
    def is_search(self) -> bool:
        """Whether runs are chosen or stopped by their results."""
        return self.design in ("tpe", "asha", "pbt")
