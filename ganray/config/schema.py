"""Every knob of a run: frozen dataclasses, one docstring under each field, checked when made.

Standard library only: the command line, the environment and YAML files are read in ``ganray.config.cli``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from ganray.errors import UserError


def require(name: str, value: object, rule: str, holds: bool) -> None:
    """Raise ``ValueError("name=value must ...")`` unless the rule holds."""
    if not holds:
        raise UserError(f"{name}={value} must {rule}")


def absolute(name: str, path: Path) -> Path:
    """The path from the root, with ~ written out.

    Raises:
        ValueError: it is the home of nobody here; `name` is the option it was given by.
    """
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"{name}={path}: there is no such user here; write it out") from error


Split = Literal["all", "train", "valid", "test"]
Encoding = Literal["raw", "jpeg"]


CONTENT = ("source", "root", "download", "crop")
"""Fields of `data` that decide what images show: without `root` and `download` faces are drawn."""


class ReferenceData(TypedDict, total=False):
    """Fields of `data` that decide how many images there are and in which form."""

    images: int | None
    drawn: int
    size: int
    flip: bool
    split: Split
    encoding: Encoding


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are laid down as shards, and how those are read."""

    source: Literal[
        "celeba", "mnist", "fashion-mnist", "stacked-mnist", "digits", "folder", "source-text"
    ] = "celeba"
    """What `root` holds. `python jobs/shard.py --help` says what each one is."""
    root: str | None = None
    """Folder or file of the source; or shards: a folder, or a URL (s3://, gs://, http://, ...).
    None: celeba's faces are drawn, others are looked for in the home's data folder."""
    download: bool = False
    """Let torchvision fetch the source (CelebA: 1.4 GB) into `root`, or the home's data folder."""
    images: int | None = None
    """Use the first so many images. None: all there are, or `drawn` faces where none are given."""
    drawn: int = 8_000
    """Faces to draw on a machine that has no CelebA."""
    size: int = 64
    """Side in pixels after the centre crop; 0 keeps the original size (CelebA: 218x178)."""
    crop: int = 0
    """Side of a random square that training cuts from each image, on the device; 0: none."""
    flip: bool = False
    """Mirror every second image at random, on the device."""
    split: Split = "all"
    """Which part of the source's own partition is trained on."""
    encoding: Encoding = "raw"
    """raw: pixels, the fastest. jpeg: the original files, 16 times smaller, decoded every time."""
    shuffle: Literal["full", "blocks"] = "full"
    """full: an exact permutation each epoch. blocks: for storage where random rows are dear."""
    block_rows: int | None = None
    """shuffle=blocks: rows that stay together. None: 64, or a whole shard where `root` is a URL."""
    window_blocks: int | None = None
    """shuffle=blocks: blocks that are mixed together. None: 32, or 4 where `root` is a URL."""
    residence: Literal["stream", "device"] = "stream"
    """stream: batches are copied to the device. device: the whole set is kept there, if it fits."""
    threads: int = 1
    """Threads of each worker that copy, or decode, the images of a batch. More than 1 only where
    cores are idle: those that copy spin while they wait, and starve where another needs a core."""
    verify: Literal["sizes", "first-touch"] = "sizes"
    """sizes: structure only, in milliseconds. first-touch: also digests, as images are first read.
    `python jobs/shard.py verify FOLDER` checks everything."""
    on_damage: Literal["stop", "skip"] = "stop"
    """skip: let other images stand in for damaged ones, and count them (data/replaced_images)."""
    cache: Path = Path("~/.cache/ganray")
    """Folder on each node's own disk, for shards that come from a URL."""
    cache_gb: float | None = None
    """The most that all shards in `cache` may take, in GB. None: what the disk holds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Path(self.cache))  # JSON has no paths
        for name in ("images", "block_rows", "window_blocks", "cache_gb"):
            value = getattr(self, name)
            require(f"data.{name}", value, "be positive", value is None or value > 0)
        for name in ("drawn", "threads"):
            value = getattr(self, name)
            require(f"data.{name}", value, "be positive", value > 0)
        require("data.size", self.size, "be 0 or at least 8", self.size == 0 or self.size >= 8)
        require("data.crop", self.crop, "be 0 or at least 8", self.crop == 0 or self.crop >= 8)
        if self.size and self.crop > self.size:
            raise UserError(
                f"data.crop={self.crop} is cut from images of data.size={self.size}; use less"
            )

    def cropped_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """(H, W, C) that the networks see of images of this shape.

        Raises:
            ValueError: `crop` is larger than the images.
        """
        height, width, channels = stored
        if self.crop > min(height, width):
            raise UserError(
                f"data.crop={self.crop} is larger than the images, {height}x{width}; use less"
            )
        return (self.crop, self.crop, channels) if self.crop else stored

    def blocks(self, shard_rows: int) -> tuple[int, int]:
        """Annotations of a block, and blocks of a window, of the blocked shuffle."""
        rows, window = (shard_rows, 4) if self.is_remote() else (64, 32)
        return self.block_rows or rows, self.window_blocks or window

    def identity(self) -> tuple[object, ...]:
        """Equal where the same images are shown in the same way, however they are read."""
        return tuple(getattr(self, name) for name in (*CONTENT, *ReferenceData.__annotations__))

    def is_remote(self) -> bool:
        """Whether `root` is a URL."""
        return self.root is not None and "://" in self.root


@dataclass(frozen=True)
class LatentConfig:
    """The generator's random input z, called the seed in the text this project grew from."""

    distribution: Literal[
        "normal",
        "uniform",
        "signed-uniform",
        "truncated-normal",
        "sphere",
        "bernoulli",
        "laplace",
        "student-t",
        "mixture",
    ] = "normal"
    """normal: N(0, 1). uniform: U[0, 1), as in the source text (its mean is not zero).
    signed-uniform: U[-1, 1). truncated-normal: N(0, 1) within 2 of 0. sphere: of radius 1.
    bernoulli: -1 or 1. laplace: of scale 1. student-t: of 3 degrees of freedom. mixture: of ten
    normals with a standard deviation of 0.5, their centres drawn once from N(0, 1)."""
    size: int = 100
    """Numbers in one z."""
    scaling: Literal["raw", "centred", "standardised"] = "raw"
    """raw: as written above. centred: less its mean. standardised: and over its deviation, so that
    only the shape differs from that of other distributions."""
    offset: float = 0.0
    """Added to every number of z, last: a mean that is not zero, whatever the distribution."""

    def __post_init__(self) -> None:
        require("latent.size", self.size, "be positive", self.size > 0)
        offset = self.offset
        require("latent.offset", offset, "be finite", math.isfinite(offset))

    def __str__(self) -> str:
        """E.g. "uniform standardised + 0.5 of size 100"."""
        scaled = "" if self.scaling == "raw" else f" {self.scaling}"
        moved = f" {'+' if self.offset > 0 else '-'} {abs(self.offset):g}" if self.offset else ""
        return f"{self.distribution}{scaled}{moved} of size {self.size}"


@dataclass(frozen=True)
class NetworkConfig:
    """Which generator and discriminator."""

    kind: Literal["mlp", "dcgan", "metz"] = "dcgan"
    """mlp: the source text's (any image shape). dcgan: convolutions (squares from 16 pixels on).
    metz: the small ones with which stacked MNIST is made to collapse (squares likewise)."""
    width_G: int = 64
    """Channels of G's last hidden layer, doubled per halving of the side (mlp: hidden units)."""
    width_D: int = 64
    """Channels of D's first layer, doubled at each halving of the side (mlp: hidden units)."""
    activation: Literal["leaky-relu", "sigmoid"] = "leaky-relu"
    """mlp: what follows the hidden layer. The source text begins with sigmoid."""
    leak: float = 0.01
    """mlp: slope of the leaky ReLU below zero."""
    layer_norm: bool = True
    """mlp: normalise the hidden units of each image."""
    conditional: bool = False
    """Give G and D the one-hot label of each image too; then G makes the class it is asked for."""
    pack: int = 1
    """Images that D judges together, by one logit for them all; PacGAN uses 2 to 4. 1: each alone.
    Packs of fakes that are too much alike give a collapsed G away."""
    minibatch_stddev: int = 0
    """Images whose spread D is told, as one more feature before its last layer; Karras et al. use
    4. 0: D is not told. With `pack`, packs instead of images."""
    spectral_norm: bool = False
    """Divide each weight matrix of D by its largest singular value: D's slope stays small."""

    def __post_init__(self) -> None:
        for name in ("width_G", "width_D"):
            value = getattr(self, name)
            if self.kind == "metz":  # in one group each, where the others are normalised in four
                require(f"network.{name}", value, "be positive", value > 0)
            else:
                rule = "be positive and divide by 4"
                require(f"network.{name}", value, rule, value > 0 == value % 4)
        require("network.leak", self.leak, "lie in [0, 1)", 0 <= self.leak < 1)
        require("network.pack", self.pack, "lie in 1 .. 8", 1 <= self.pack <= 8)
        group = self.minibatch_stddev
        require("network.minibatch_stddev", group, "be 0 or at least 2", group == 0 or group >= 2)
        if self.conditional and self.pack > 1:
            raise UserError(
                f"network.pack={self.pack} joins images, of which each would have a label of its"
                " own with network.conditional=True; use one of the two"
            )

    def group_size(self) -> int:
        """How many consecutive images of a batch D looks at together: no rank may part them."""
        return self.pack * max(1, self.minibatch_stddev)


@dataclass(frozen=True)
class LossConfig:
    """The adversarial game and its gradient penalties."""

    name: Literal["bce", "mse", "lsgan", "hinge", "wgan", "relativistic"] = "bce"
    """bce: non-saturating, ideal ln 2. mse: on probabilities, ideal 0.25, as in the source text.
    lsgan: on raw logits. wgan: wants `gp_weight` (or spectral_norm), or its logits grow for ever.
    """
    r1_gamma: float = 0.0
    """Weight of half the squared gradient of D at the reals. Keeps D's slope small there."""
    r2_gamma: float = 0.0
    """The same at the fakes."""
    gp_weight: float = 0.0
    """WGAN-GP's lambda, published as 10: holds D's slope at 1 between reals and fakes. 0: off."""
    unroll: int = 0
    """Steps of D that G looks ahead; Metz et al. use 5 to 10. 0: off. For one worker only."""
    unroll_lr: float = 0.1
    """Rate of those steps, which are plain gradient descent. Where `optimizer` is sgd, give its
    lr_D. Adam goes lr_D however small the gradient; this goes as far with lr_D / gradient: about
    0.04 for cpu32 and 0.8 for normal-100."""

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "r2_gamma", "gp_weight", "unroll"):
            value = getattr(self, name)
            require(f"loss.{name}", value, "not be negative", value >= 0)
        require("loss.unroll_lr", self.unroll_lr, "be positive", 0 < self.unroll_lr < math.inf)


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer for each network, of the same kind."""

    name: Literal["adam", "adamw", "rmsprop", "sgd", "lion"] = "adam"
    """The torch.optim class; lion (Chen et al. 2023) moves each weight by lr whatever its gradient,
    and wants a fifth of Adam's rate or less."""
    lr_G: float = 2e-4
    """Learning rate of the generator."""
    lr_D: float = 2e-4
    """Learning rate of the discriminator."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient (sgd: the momentum). 0.9 is torch's own default."""
    beta2: float = 0.999
    """Adam's decay of the squared gradient (lion: of the mean gradient; 0.99 is its default)."""

    def __post_init__(self) -> None:
        for name in ("lr_G", "lr_D"):
            value = getattr(self, name)
            require(f"optimizer.{name}", value, "be positive", 0 < value < math.inf)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(f"optimizer.{name}", value, "lie in [0, 1)", 0 <= value < 1)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large a step, how often to look. Durations are in kimg: 1,000 real images."""

    kimg: float = 25_000
    """Real images shown to D in all, in thousands."""
    batch_size: int = 128
    """Images per optimizer step, summed over ranks. Ranks may get unequal slices."""
    G_every: int = 1
    """Steps of D for each turn of G. 1: they take turns. WGAN-GP gives D five."""
    G_steps: int = 1
    """Updates of G in its turn, each by latents of its own. PacGAN makes two on stacked MNIST."""
    rng_seed: int = 0
    """Makes the run repeatable: order, latents and first weights follow from it and the step."""
    ema_kimg: float = 10
    """Half-life of G_ema, the average of G's weights that makes the samples. 0: G itself."""
    log_every: float = 4
    """kimg between log lines (and the one reduction of the statistics)."""
    sample_every: float = 100
    """kimg between sample grids of the same fixed latents."""
    checkpoint_every: float = 500
    """kimg between checkpoints; a killed run goes on from the last one."""
    keep_checkpoints: int = 3
    """Checkpoints kept on disk."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward passes under autocast; weights and optimizer stay fp32."""

    def __post_init__(self) -> None:
        for name in ("kimg", "batch_size", "log_every", "sample_every", "checkpoint_every"):
            value = getattr(self, name)
            require(f"train.{name}", value, "be positive", 0 < value < math.inf)
        require("train.ema_kimg", self.ema_kimg, "not be negative", self.ema_kimg >= 0)
        require("train.rng_seed", self.rng_seed, "lie in [0, 2**63)", 0 <= self.rng_seed < 2**63)
        keep = self.keep_checkpoints
        require("train.keep_checkpoints", keep, "be at least 1", keep >= 1)
        for name in ("G_every", "G_steps"):
            value = getattr(self, name)
            require(f"train.{name}", value, "be at least 1", value >= 1)

    def steps(self) -> int:
        """Optimizer steps of D in the whole run."""
        return self.kimg_to_steps(self.kimg)

    def generator_updates(self, step: int) -> list[str]:
        """The streams of latents of G's updates in this step of D; none where it is not G's turn.

        A turn ends a round of `G_every` steps, so that G meets a D that has learned.
        """
        if (step + 1) % self.G_every:
            return []
        return ["G", *(f"G{again}" for again in range(1, self.G_steps))]

    def kimg_to_steps(self, kimg: float) -> int:
        """A duration in kimg as a number of whole steps, at least one."""
        return max(1, math.ceil(kimg * 1000 / self.batch_size))


@dataclass(frozen=True)
class EvaluationConfig:
    """How much of the data G covers, measured as it trains, and once more when it has."""

    samples: int = 1_000
    """Samples of G_ema, and real images, that are compared at a time; 0: nothing is measured."""
    every: float | None = None
    """kimg between two evaluations. None: one with every sample grid."""
    max_share: float = 0.05
    """Of the training time, at most: an evaluation that would take more is left out."""
    report_samples: int = 5_000
    """The same of the report at the end, which has intervals; 0: no report."""
    features: Literal["classifier", "inception"] = "classifier"
    """Network that computes the features of images. classifier: trained on the reference images.
    inception: Inception v3 from a file of weights that you have, with `pip install
    'ganray[pretrained]'`; far slower, but Frechet distances compare with published ones."""
    reals: ReferenceData = field(default_factory=ReferenceData)
    """Fields of `data` that are others for the images that samples are compared with, e.g.
    --data.split train --evaluation.reals.split test: images held out; or --data.images 500
    --evaluation.reals.images null: the whole set, as in Karras et al. 2020. Samples of another size
    are resized to theirs. What is not named is as in `data`."""
    weights: str | None = None
    """inception: path of the weights, on every node. Nothing is downloaded."""

    def __post_init__(self) -> None:
        for name in ("samples", "report_samples"):
            value = getattr(self, name)
            rule = "be 0, or at least 80: less says nothing"
            require(f"evaluation.{name}", value, rule, value == 0 or value >= 80)
        every = self.every
        require("evaluation.every", every, "be positive", every is None or every > 0)
        if self.features != "classifier" and not self.weights:
            raise UserError(
                f"evaluation.features={self.features} needs a file of its weights; give"
                " --evaluation.weights FILE"
            )
        share = self.max_share
        require("evaluation.max_share", share, "lie in (0, 1]", 0 < share <= 1)
        if unknown := set(self.reals) - set(ReferenceData.__annotations__):
            known = ", ".join(ReferenceData.__annotations__)
            raise UserError(f"evaluation.reals: {', '.join(unknown)} must be among {known}")

    def compares(self) -> bool:
        """Whether samples are compared with anything at all."""
        return self.samples > 0 or self.report_samples > 0


@dataclass(frozen=True)
class RayConfig:
    """Where the workers run."""

    address: str | None = None
    """A running cluster ("auto" finds it). None: $RAY_ADDRESS, as jobs have, else a local Ray."""
    workers: int | None = None
    """DDP workers. None: one per GPU, or 2 on CPU."""
    gpu: bool | None = None
    """One GPU for each worker. None: if the cluster has any."""
    cpus_per_worker: int = 1
    """CPU cores, and so torch threads, of one worker."""
    max_failures: int = 3
    """Lost workers (out of memory, preempted, killed) to survive before giving up."""

    def __post_init__(self) -> None:
        require(
            "ray.workers", self.workers, "be positive", self.workers is None or self.workers > 0
        )
        cpus = self.cpus_per_worker
        require("ray.cpus_per_worker", cpus, "be positive", cpus > 0)
        failures = self.max_failures
        require("ray.max_failures", failures, "not be negative", failures >= 0)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the numbers go."""

    uri: str | None = None
    """MLflow store or server. None: $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    experiment: str = "celeba"
    """MLflow experiment that holds the run."""


@dataclass(frozen=True)
class Config:
    """One run."""

    preset: str = "auto"
    """The named configuration the run started from; auto picks one for the hardware."""
    name: str = ""
    """Run name. Submitting the same name again goes on where it stopped. Empty: preset and time."""
    home: Path = Path("~/.ganray")
    """Folder for shards, runs and the MLflow store; on a cluster, one that all nodes share."""
    launcher: Literal["ray", "torch"] = "ray"
    """ray: a TorchTrainer. torch: this process, or the processes torchrun started; no Ray."""
    dry_run: bool = False
    """Print the resolved plan and exit."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of log messages that are printed. debug: from all ranks, with timestamps."""
    check_discriminator: bool = False
    """Only let D learn, here, to tell real images from noise, and show how well it can."""
    data: DataConfig = field(default_factory=DataConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        self.reference_data()
        bad = [c for c in self.name if not (c.isalnum() or c in "._-")]
        if bad or self.name.startswith("."):
            raise UserError(f"name={self.name!r} may hold letters, digits, '.', '_' and '-' only")
        size = self.data.crop or self.data.size
        if self.network.kind != "mlp" and size < 16:
            name = "data.crop" if self.data.crop else "data.size"
            raise UserError(
                f"network.kind={self.network.kind} needs {name} to be 16 or more, not {size};"
                f" try --{name} 64, or --network.kind mlp, which takes any size"
            )

    def reference_data(self) -> DataConfig:
        """The images that samples are compared with: `data`, but for `evaluation.reals`.

        Raises:
            ValueError: these do not go with the rest of `data`.
        """
        reals = self.evaluation.reals
        try:
            found = dataclasses.replace(self.data, **reals)
        except ValueError as error:
            raise UserError(f"evaluation.reals={reals}: {error}") from error
        if found.crop and found.size != self.data.size:
            raise UserError(
                f"evaluation.reals={reals}: squares of data.crop={found.crop} show another part of"
                f" such images than of those of data.size={self.data.size}; leave the size out"
            )
        return found

    def images_identity(self) -> tuple[object, ...]:
        """Equal where the same images are learned, and the same ones judge."""
        return self.data.identity(), self.reference_data().identity()

    def run_folder(self) -> Path:
        """Everything one run leaves on disk: config, journal, pictures, checkpoints."""
        return self.home / "runs" / self.name

    def pixel_min(self) -> float:
        """What black becomes: 0 for the source text's sigmoid generator, -1 for a tanh one."""
        return 0.0 if self.network.kind == "mlp" else -1.0


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "latent": LatentConfig,
    "network": NetworkConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "evaluation": EvaluationConfig,
    "ray": RayConfig,
    "tracking": TrackingConfig,
}
