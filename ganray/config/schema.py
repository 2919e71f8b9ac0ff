"""Configuration of a run: frozen dataclasses, validated on creation, each field with a docstring.

Uses the standard library only; ``ganray.config.cli`` reads command lines, environment and YAML.

The metadata of each field states what the field means to the rest of the package, see ``option``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from ganray.errors import UserError
from ganray.log import LogLevel, redact

Identity = Literal["content", "selection", "none"]
Resume = Literal["fixed", "free"]
Sweep = Literal["no", "axis", "live"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    resume: Resume,
    sweep: Sweep,
    identity: Identity | None = None,
    secret: bool = False,
    factory: Callable[[], Any] | Any = dataclasses.MISSING,
) -> Any:
    """Return a dataclass field with the metadata that every field of a config must have.

    Args:
        default: The field's default.
        resume: ``fixed``: a run cannot resume with another value, because it would train something
            else. ``free``: it can.
        sweep: ``axis``: a sweep may vary the field between runs. ``live``: also within a run, as
            population-based training does. ``no``: all runs of a sweep share it.
        identity: Required in ``DataConfig``. ``content``: decides what the images show.
            ``selection``: decides which of them are used and in which form. ``none``: decides only
            how they are stored or read.
        secret: Whether the value is a URL that may hold a password or signature, which is redacted
            wherever the config is written.
        factory: Makes the default if that is mutable.
    """
    metadata = {"resume": resume, "sweep": sweep, "identity": identity, "secret": secret}
    # Ray's dashboard shows the repr of what workers are given.
    return field(default=default, default_factory=factory, metadata=metadata, repr=not secret)


def require(name: str, value: object, rule: str, holds: bool) -> None:
    """Raise ``UserError("name=value must rule")`` unless the rule holds."""
    if not holds:
        raise UserError(f"{name}={value} must {rule}")


def require_positive(config: object, prefix: str, *names: str) -> None:
    """Raise ``UserError`` unless these fields, named with the prefix, are positive or None."""
    for name in names:
        value = getattr(config, name)
        require(prefix + name, value, "be positive", value is None or 0 < value < math.inf)


def require_share(name: str, value: float | None) -> None:
    """Raise ``UserError`` unless the value lies in [0, 1] or is None."""
    require(name, value, "lie in [0, 1]", value is None or 0 <= value <= 1)


def absolute(name: str, path: Path) -> Path:
    """Return the absolute path with ``~`` expanded; `name` is the option that it was given by."""
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"{name}={path}: unknown user; write the path without ~") from error


Split = Literal["all", "train", "valid", "test"]
Encoding = Literal["raw", "jpeg"]
LabelSource = Literal["auto", "folder", "none", "dataset.json"]
FeatureNetwork = Literal["classifier", "inception", "dinov2", "clip"]


class ReferenceData(TypedDict, total=False):
    """Fields of `data`, of identity ``selection``, that differ for the reference images."""

    images: int | None
    faces: int
    size: int
    flip: bool
    split: Split
    encoding: Encoding


@dataclass(frozen=True)
class DataConfig:
    """Training images, their conversion to shards, and how shards are read."""

    source: Literal[
        "celeba",
        "mnist",
        "fashion-mnist",
        "stacked-mnist",
        "cifar10",
        "digits",
        "folder",
        "hdf5",
        "numpy",
        "source-text",
    ] = option("celeba", identity="content", resume="fixed", sweep="axis")
    """Format of the images in `root`. `python jobs/shard.py --help` describes each."""
    root: str | None = option(None, identity="content", resume="free", sweep="axis", secret=True)
    """Your images: a folder or file of the source, or a folder or URL of shards (s3://, http://).
    None: procedural faces for celeba; other sources are looked for in the home's data folder."""
    download: bool = option(False, identity="content", resume="free", sweep="axis")
    """Let torchvision download the source (CelebA: 1.4 GB) into `root` or the home's data."""
    missing: Literal["skip", "error"] = option(
        "skip", identity="content", resume="free", sweep="axis"
    )
    """Whether CelebA may be incomplete. skip: train on the images that are there, without
    attributes if their list is missing."""
    labels: LabelSource = option("auto", identity="content", resume="fixed", sweep="axis")
    """Source of the classes. auto, of a folder: StyleGAN's dataset.json if it has labels, else
    the top folders, if there are several and they are no numbered batches; of an HDF5 file: the
    labels beside the images."""
    bad_images: Literal["error", "skip"] = option(
        "error", identity="content", resume="free", sweep="axis"
    )
    """Treatment of images that cannot be read; the log names each of them."""
    background: Literal["white", "black", "gray"] = option(
        "white", identity="content", resume="fixed", sweep="axis"
    )
    """Color behind what is transparent in the images of a folder."""
    dataset: str | None = option(None, identity="content", resume="fixed", sweep="axis")
    """Path of the images in an HDF5 file, such as /imgs. None: found by name or dimensions."""
    images: int | None = option(None, identity="selection", resume="fixed", sweep="axis")
    """Maximum number of images, from the first on. None: all, or `faces` procedural ones."""
    faces: int = option(8_000, identity="selection", resume="fixed", sweep="axis")
    """Number of procedural faces to draw if there is no CelebA."""
    size: int = option(64, identity="selection", resume="fixed", sweep="axis")
    """Side in pixels after the center crop. 0: the original size (CelebA: 218x178)."""
    crop: int = option(0, identity="content", resume="fixed", sweep="axis")
    """Side in pixels of a random square crop, made on the device in each step. 0: no crop."""
    flip: bool = option(False, identity="selection", resume="fixed", sweep="axis")
    """Mirror images at random with probability 1/2, on the device."""
    split: Split = option("all", identity="selection", resume="fixed", sweep="axis")
    """Split of the source's own partition to train on."""
    encoding: Encoding = option("raw", identity="selection", resume="fixed", sweep="axis")
    """Form of the images in shards. raw: pixels, the fastest. jpeg: the original files, 16 times
    smaller, decoded every time."""
    shuffle: Literal["full", "blocks"] = option(
        "full", identity="none", resume="fixed", sweep="axis"
    )
    """Order of the images. full: an exact permutation in each epoch. blocks: for storage with slow
    random access."""
    block_rows: int | None = option(None, identity="none", resume="fixed", sweep="axis")
    """Images per block of shuffle=blocks. None: 64, or a whole shard if `root` is a URL."""
    window_blocks: int | None = option(None, identity="none", resume="fixed", sweep="axis")
    """Blocks that shuffle=blocks mixes with each other. None: 32, or 4 if `root` is a URL."""
    residence: Literal["stream", "device"] = option(
        "stream", identity="none", resume="free", sweep="axis"
    )
    """Place of the images. stream: batches are copied to the device. device: keep all images
    there, if they fit."""
    threads: int = option(1, identity="none", resume="free", sweep="axis")
    """Threads per worker that copy or decode the images of a batch. Use more than 1 only if cores
    are idle: copying threads spin while they wait."""
    verify: Literal["sizes", "first-touch"] = option(
        "sizes", identity="none", resume="free", sweep="axis"
    )
    """Checks of shards. sizes: their structure, in milliseconds. first-touch: also check
    digests when images are first read. `python jobs/shard.py verify FOLDER` checks everything."""
    cache: Path = option(Path("~/.cache/ganray"), identity="none", resume="free", sweep="axis")
    """Folder on each node's local disk for shards that come from a URL."""
    cache_gb: float | None = option(None, identity="none", resume="free", sweep="axis")
    """Maximum size in GB of all shards in `cache`. None: as much as the disk holds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Path(self.cache))  # JSON has no paths
        positive = ("images", "faces", "block_rows", "window_blocks", "cache_gb", "threads")
        require_positive(self, "data.", *positive)
        for name in ("size", "crop"):
            value = getattr(self, name)
            require(f"data.{name}", value, "be 0 or at least 8", value == 0 or value >= 8)
        if self.size and self.crop > self.size:
            raise UserError(
                f"data.crop={self.crop} must not exceed data.size={self.size}; use a smaller crop"
            )

    def cropped_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (H, W, C) after the random crop of stored images of shape `stored`.

        Raises:
            UserError: The crop is larger than the images.
        """
        height, width, channels = stored
        if self.crop > min(height, width):
            raise UserError(
                f"data.crop={self.crop} is larger than the images, {height}x{width};"
                " use a smaller crop"
            )
        return (self.crop, self.crop, channels) if self.crop else stored

    def blocks(self, shard_rows: int) -> tuple[int, int]:
        """Return images per block and blocks per window of shuffle=blocks."""
        rows, window = (shard_rows, 4) if self.is_remote() else (64, 32)
        return self.block_rows or rows, self.window_blocks or window

    def identity(self) -> tuple[object, ...]:
        """Return a key that is equal for configs with the same images in the same form."""
        used = data_fields("content"), data_fields("selection")
        return tuple(getattr(self, name) for names in used for name in names)

    def is_remote(self) -> bool:
        """Return whether `root` is a URL."""
        return self.root is not None and "://" in self.root


def data_fields(identity: Identity) -> tuple[str, ...]:
    """Return the names of the fields of `data` with this identity.

    Raises:
        TypeError: A field has none, so that changes of it would go unnoticed.
    """
    kinds = {f.name: f.metadata.get("identity") for f in dataclasses.fields(DataConfig)}
    if unclassified := [name for name, kind in kinds.items() if kind is None]:
        raise TypeError(f"data.{unclassified[0]} needs an identity, see option()")
    return tuple(name for name, kind in kinds.items() if kind == identity)


@dataclass(frozen=True)
class LatentConfig:
    """The generator's random input z; the text that this project grew from calls it the seed."""

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
    ] = option("normal", resume="fixed", sweep="live")
    """Distribution of z. normal: N(0, 1). uniform: U[0, 1), as in the source text (its mean is not
    zero). signed-uniform: U[-1, 1). truncated-normal: N(0, 1) within [-2, 2]. sphere: uniform on
    the unit sphere. bernoulli: -1 or 1. laplace: scale 1. student-t: 3 degrees of freedom. mixture:
    ten normals with standard deviation 0.5 and fixed centers drawn from N(0, 1)."""
    size: int = option(100, resume="fixed", sweep="axis")
    """Dimension of z."""
    scaling: Literal["raw", "centered", "standardized"] = option(
        "raw", resume="fixed", sweep="live"
    )
    """Scaling of the distribution. raw: as defined above. centered: with the mean subtracted.
    standardized: also divided by the standard deviation, so that distributions differ in shape
    only."""
    offset: float = option(0.0, resume="fixed", sweep="live")
    """Added to every element of z after scaling, to give any distribution a mean."""

    def __post_init__(self) -> None:
        require_positive(self, "latent.", "size")
        require("latent.offset", self.offset, "be finite", math.isfinite(self.offset))

    def __str__(self) -> str:
        """Return e.g. "uniform standardized + 0.5 of size 100"."""
        scaling = "" if self.scaling == "raw" else f" {self.scaling}"
        sign = "+" if self.offset > 0 else "-"
        offset = f" {sign} {abs(self.offset):g}" if self.offset else ""
        return f"{self.distribution}{scaling}{offset} of size {self.size}"


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of the generator and the discriminator."""

    kind: Literal["mlp", "dcgan", "metz", "resnet"] = option("dcgan", resume="fixed", sweep="axis")
    """Architecture of G and D. mlp: the source text's, for any image shape. dcgan: convolutional,
    for squares from 16 pixels on. metz: the small networks of Metz et al. for stacked MNIST, for
    squares from 16 pixels on. resnet: the residual networks of R3GAN (Huang et al. 2024), for
    squares of 16, 32, 64, 128 or 256 pixels."""
    width_G: int = option(64, resume="fixed", sweep="axis")
    """Channels of G's last hidden layer, doubled per halving of the side (mlp: hidden units)."""
    width_D: int = option(64, resume="fixed", sweep="axis")
    """Channels of D's first layer, doubled per halving of the side (mlp: hidden units)."""
    max_width: int = option(512, resume="fixed", sweep="axis")
    """Maximum number of channels of a resnet's stage, at least width_G and width_D; R3GAN has 768
    and, for ImageNet, 1536."""
    blocks: int = option(1, resume="fixed", sweep="axis")
    """Residual blocks of a resnet per size of the image; R3GAN has 2."""
    group_width: int = option(16, resume="fixed", sweep="axis")
    """Channels per group of a resnet's 3x3 convolutions, which have twice the channels of their
    stage; R3GAN has 16, for ImageNet 32. 0: one group, which some GPUs compute faster than many."""
    activation: Literal["leaky-relu", "sigmoid"] = option(
        "leaky-relu", resume="fixed", sweep="axis"
    )
    """Activation of the MLP's hidden layer. The source text begins with sigmoid."""
    leak: float = option(0.01, resume="fixed", sweep="axis")
    """Slope of the MLP's leaky ReLU below zero."""
    layer_norm: bool = option(True, resume="fixed", sweep="axis")
    """Apply LayerNorm to the MLP's hidden units."""
    conditional: bool = option(False, resume="fixed", sweep="axis")
    """Condition G and D on the one-hot class label."""
    pack: int = option(1, resume="fixed", sweep="axis")
    """Images per logit of D (PacGAN, Lin et al. 2018, uses 2 to 4). A collapsed generator makes
    packs that are more alike than packs of real images. 1: no packing."""
    minibatch_stddev: int = option(0, resume="fixed", sweep="axis")
    """Group size of the minibatch-stddev layer in packs (Karras et al. use 4). 0: no such layer."""
    spectral_norm: bool = option(False, resume="fixed", sweep="axis")
    """Apply spectral normalization (Miyato et al. 2018) to every weight matrix of D."""

    def __post_init__(self) -> None:
        require_positive(self, "network.", "width_G", "width_D", "max_width", "blocks")
        # GroupNorm has 4 groups but in metz; a resnet's 3x3 convolution has 2 channels per width.
        multiple = 1 if self.kind == "metz" else 4
        widths = ("width_G", "width_D")
        if self.kind == "resnet":
            require(
                "network.group_width", self.group_width, "not be negative", self.group_width >= 0
            )
            multiple = max(1, self.group_width // math.gcd(2, self.group_width))
            widths = (*widths, "max_width")
            smallest = max(self.width_G, self.width_D)
            rule = f"be at least {smallest}, the width of the networks"
            require("network.max_width", self.max_width, rule, self.max_width >= smallest)
        for name in widths:
            value = getattr(self, name)
            require(f"network.{name}", value, f"be divisible by {multiple}", value % multiple == 0)
        require("network.leak", self.leak, "lie in [0, 1)", 0 <= self.leak < 1)
        require("network.pack", self.pack, "lie in 1 .. 8", 1 <= self.pack <= 8)
        group = self.minibatch_stddev
        require("network.minibatch_stddev", group, "be 0 or at least 2", group == 0 or group >= 2)
        if self.kind == "resnet" and self.spectral_norm:
            raise UserError(
                "network.spectral_norm=true and network.kind=resnet exclude each other, as weights"
                " that start at zero have no norm; bound D by loss.r1_gamma and loss.r2_gamma"
            )
        if self.conditional and self.pack > 1:
            raise UserError(
                f"network.pack={self.pack} and network.conditional=true exclude each other, as the"
                " images of a pack have different labels; use one of them"
            )

    def group_size(self) -> int:
        """Return the number of consecutive images that D sees together; no rank may split them."""
        return self.pack * max(1, self.minibatch_stddev)


@dataclass(frozen=True)
class LossConfig:
    """Adversarial loss and gradient penalties."""

    name: Literal["bce", "mse", "lsgan", "hinge", "wgan", "relativistic"] = option(
        "bce", resume="fixed", sweep="axis"
    )
    """Adversarial loss. bce: non-saturating, ideal ln 2. mse: on probabilities, ideal 0.25, as in
    the source text. lsgan: on raw logits. wgan: needs `gp_weight` (or spectral_norm) to bound its
    logits."""
    r1_gamma: float = option(0.0, resume="fixed", sweep="live")
    """Weight of R1: half the squared gradient of D at real images."""
    r2_gamma: float = option(0.0, resume="fixed", sweep="live")
    """Weight of R2: half the squared gradient of D at fakes."""
    penalty_every: int = option(1, resume="fixed", sweep="axis")
    """Steps of D per R1 and R2 penalty, which is multiplied by that number: lazy regularization.
    Karras et al. 2020 use 16."""
    gp_weight: float = option(0.0, resume="fixed", sweep="live")
    """Weight of the WGAN-GP penalty (lambda, published as 10). 0: none."""
    unroll: int = option(0, resume="fixed", sweep="axis")
    """Steps of D that G's loss is unrolled through (Metz et al. use 5 to 10). 0: none. Needs a
    single worker."""
    unroll_lr: float = option(0.1, resume="fixed", sweep="axis")
    """Learning rate of the unrolled steps, which are plain gradient descent. With optimizer sgd use
    its lr_D. Adam moves by lr_D however small the gradient; plain descent moves as far with
    lr_D / gradient: about 0.04 for cpu32 and 0.8 for normal-100."""

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "r2_gamma", "gp_weight", "unroll"):
            value = getattr(self, name)
            require(f"loss.{name}", value, "not be negative", value >= 0)
        require_positive(self, "loss.", "unroll_lr", "penalty_every")

    def penalty_scale(self, step: int) -> int:
        """Return the factor of R1 and R2 at a step of D; 0 at those without penalties."""
        return 0 if step % self.penalty_every else self.penalty_every


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer of both networks."""

    name: Literal["adam", "adamw", "rmsprop", "sgd", "lion"] = option(
        "adam", resume="fixed", sweep="axis"
    )
    """Optimizer of both networks. lion (Chen et al. 2023) moves each weight by lr whatever its
    gradient, and needs a fifth of Adam's learning rate or less."""
    lr_G: float = option(2e-4, resume="fixed", sweep="live")
    """Learning rate of the generator."""
    lr_D: float = option(2e-4, resume="fixed", sweep="live")
    """Learning rate of the discriminator."""
    beta1: float = option(0.5, resume="fixed", sweep="live")
    """Adam's decay of the mean gradient (sgd: the momentum); torch's default is 0.9."""
    beta2: float = option(0.999, resume="fixed", sweep="live")
    """Adam's decay of the squared gradient (lion: of the mean gradient, published as 0.99)."""

    def __post_init__(self) -> None:
        require_positive(self, "optimizer.", "lr_G", "lr_D")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(f"optimizer.{name}", value, "lie in [0, 1)", 0 <= value < 1)


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batch size and intervals. One kimg is 1,000 real images shown to D."""

    kimg: float = option(25_000, resume="free", sweep="axis")
    """Length of the run in kimg."""
    batch_size: int = option(128, resume="fixed", sweep="axis")
    """Images per optimizer step, summed over ranks. Ranks may get unequal slices."""
    microbatch: int | None = option(None, resume="free", sweep="axis")
    """Images per worker that pass through the networks at once; gradients are accumulated over the
    batch, so that one that does not fit into memory gives the same updates. None: all."""
    G_every: int = option(1, resume="fixed", sweep="axis")
    """Steps of D per update of G; WGAN-GP uses 5."""
    G_steps: int = option(1, resume="fixed", sweep="axis")
    """Consecutive updates of G, each with new latents; PacGAN uses 2 on stacked MNIST."""
    rng_seed: int = option(0, resume="fixed", sweep="no")
    """Seed from which the sample order, latents and initial weights follow."""
    ema_kimg: float = option(10, resume="fixed", sweep="axis")
    """Half-life in kimg of G_ema, the moving average of G that makes the samples. 0: G itself."""
    log_every: float = option(4, resume="free", sweep="axis")
    """kimg between log lines, each of which reduces the statistics over ranks once."""
    sample_every: float = option(100, resume="free", sweep="axis")
    """kimg between sample grids, all at the same latents."""
    checkpoint_every: float = option(500, resume="free", sweep="axis")
    """kimg between checkpoints; a killed run resumes from the latest."""
    checkpoint_minutes: float = option(30, resume="free", sweep="axis")
    """Minutes after which a log line also saves a checkpoint, so that slow runs lose little."""
    keep_checkpoints: int = option(3, resume="free", sweep="axis")
    """Number of checkpoints kept on disk, besides the one with the best coverage."""
    keep_every: float | None = option(None, resume="free", sweep="axis")
    """kimg between checkpoints that are kept forever. None: none are."""
    strict_resume: bool = option(False, resume="free", sweep="axis")
    """Whether to stop if the newest checkpoint is damaged, instead of using an earlier one."""
    hang_timeout: float = option(120, resume="free", sweep="axis")
    """Seconds after which a step hangs, or a worker that no longer answers is lost: all stacks go
    to error.txt, and the run resumes from its last checkpoint. The start, the first step, sample
    grids, evaluations and checkpoints may take ten times as long. Ray itself gives up a worker that
    does not answer it for 1.25 times as long."""
    on_nan: Literal["stop", "rollback"] = option("stop", resume="free", sweep="axis")
    """Reaction to a loss or weight that is not finite. stop: end the run. rollback: go back to the
    last checkpoint and continue with other batches and latents, at most three times."""
    precision: Literal["fp32", "bf16"] = option("fp32", resume="fixed", sweep="axis")
    """Precision of the forward passes. bf16: under autocast; weights and optimizer state stay
    fp32."""
    matmul_precision: Literal["highest", "high"] = option("high", resume="fixed", sweep="axis")
    """Precision of matrix products and convolutions of fp32 on a GPU. high: TF32, which rounds
    their inputs to 10 bits. highest: full fp32, several times slower."""
    reduce_precision: Literal["fp32", "bf16"] = option("fp32", resume="fixed", sweep="axis")
    """Precision of gradients while DDP averages them over workers. bf16: half the traffic between
    nodes, but results then depend on the number of workers."""
    deterministic: bool = option(False, resume="fixed", sweep="axis")
    """Use only deterministic kernels on a GPU, which are slower, so that equal runs are equal bit
    for bit. On a CPU they always are."""

    cuda_graphs: bool = option(True, resume="free", sweep="axis")
    """Whether a worker that trains alone on its GPU submits each step as one CUDA graph, which is
    several times as fast for small networks. Several workers never do."""

    def __post_init__(self) -> None:
        lengths = ("kimg", "batch_size", "log_every", "sample_every", "checkpoint_every")
        lengths += ("checkpoint_minutes", "keep_every", "hang_timeout")
        counts = ("keep_checkpoints", "G_every", "G_steps", "microbatch")
        require_positive(self, "train.", *lengths, *counts)
        require("train.ema_kimg", self.ema_kimg, "not be negative", self.ema_kimg >= 0)
        require("train.rng_seed", self.rng_seed, "lie in [0, 2**63)", 0 <= self.rng_seed < 2**63)

    def steps(self) -> int:
        """Return the number of D's optimizer steps in the whole run."""
        return self.kimg_to_steps(self.kimg)

    def generator_updates(self, step: int) -> list[str]:
        """Return the latent streams of G's updates after this step of D.

        G is updated `G_steps` times after every `G_every` steps of D, and not after other steps.
        """
        if (step + 1) % self.G_every:
            return []
        return ["G", *(f"G{update}" for update in range(1, self.G_steps))]

    def kimg_to_steps(self, kimg: float) -> int:
        """Return a duration in kimg as a number of whole steps, at least one."""
        return max(1, math.ceil(kimg * 1000 / self.batch_size))


@dataclass(frozen=True)
class ScheduleConfig:
    """Values at the end of training, towards which options move along half a cosine.

    R3GAN (Huang et al. 2024) moves all of these. They change in a hundred equal intervals of images
    seen, whatever the batch size and the number of workers, and then stay.
    """

    kimg: float | None = option(None, resume="fixed", sweep="axis")
    """kimg until the end. None: train.kimg."""
    lr_factor: float = option(1.0, resume="fixed", sweep="axis")
    """Factor of optimizer.lr_G and optimizer.lr_D at the end; R3GAN has 0.25."""
    beta2: float | None = option(None, resume="fixed", sweep="axis")
    """optimizer.beta2 at the end. None: constant. R3GAN moves it from 0.9 to 0.99."""
    gamma_factor: float = option(1.0, resume="fixed", sweep="axis")
    """Factor of loss.r1_gamma and loss.r2_gamma at the end; R3GAN has 0.1."""
    ema_kimg: float | None = option(None, resume="fixed", sweep="axis")
    """train.ema_kimg at the end. None: constant. R3GAN moves it from 0 to 500 for FFHQ-64."""
    augment_p: float | None = option(None, resume="fixed", sweep="axis")
    """augment.p at the end. None: constant. R3GAN moves it from 0 to 0.3 for FFHQ-64."""

    def __post_init__(self) -> None:
        require_positive(self, "schedule.", "kimg", "lr_factor")
        factor, beta2, ema_kimg = self.gamma_factor, self.beta2, self.ema_kimg
        require("schedule.gamma_factor", factor, "not be negative", 0 <= factor < math.inf)
        require("schedule.beta2", beta2, "lie in [0, 1)", beta2 is None or 0 <= beta2 < 1)
        rule = "be finite and not negative"
        require("schedule.ema_kimg", ema_kimg, rule, ema_kimg is None or 0 <= ema_kimg < math.inf)
        require_share("schedule.augment_p", self.augment_p)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of all images that D sees, real and fake: against memorizing few images."""

    policy: Literal["none", "ada", "diffaugment", "diffaugment-geometry"] = option(
        "none", resume="fixed", sweep="axis"
    )
    """Random changes of the images before D, through which G's gradients pass. ada: mirroring,
    rotation, shift, scale, colors and cutout, each with probability `p` (Karras et al. 2020).
    diffaugment: brightness, saturation, contrast, shift and cutout of every image (Zhao et al.
    2020). diffaugment-geometry: shift and cutout only."""
    p: float = option(0.0, resume="fixed", sweep="axis")
    """Probability of each change of ada, half of it for changes of color. From 0.8 on, G starts to
    produce changed images."""
    target: float | None = option(None, resume="fixed", sweep="axis")
    """Mean sign of D's logits for real images that `p` is adapted to reach: ADA's r_t, a measure of
    overfitting; published as 0.6. None: `p` follows the schedule."""
    adapt_kimg: float = option(500, resume="fixed", sweep="axis")
    """kimg in which an adaptive `p` can move from 0 to 1."""

    def __post_init__(self) -> None:
        require_share("augment.p", self.p)
        require_positive(self, "augment.", "adapt_kimg")
        target = self.target
        require("augment.target", target, "lie in (0, 1)", target is None or 0 < target < 1)


@dataclass(frozen=True)
class EvaluationConfig:
    """Comparison of samples with reference images, during and after training."""

    samples: int = option(1_000, resume="free", sweep="no")
    """Samples of G_ema, and as many reference images, per evaluation during training. 0: none."""
    every: float | None = option(None, resume="free", sweep="no")
    """kimg between evaluations. None: one with every sample grid."""
    max_share: float = option(0.05, resume="free", sweep="no")
    """Maximum share of the training time; an evaluation that would exceed it is skipped."""
    report_samples: int = option(5_000, resume="free", sweep="no")
    """Samples for the final report, which adds confidence intervals. 0: no report."""
    features: FeatureNetwork = option("classifier", resume="free", sweep="no")
    """Network that computes the features of images. classifier: trained on the reference images.
    Others need a file of `weights` that you have, and are far slower. inception: Inception v3, for
    FID and KID, with `pip install torch-fidelity`. dinov2: DINOv2 ViT-L/14, for FD-DINOv2; clip:
    CLIP ViT-L/14 at 336 pixels, for CMMD; both with `pip install timm`."""
    reference: ReferenceData = option(factory=ReferenceData, resume="free", sweep="no")
    """Fields of `data` that differ for the reference images. --data.split train
    --evaluation.reference.split test: held-out images. --data.images 500
    --evaluation.reference.images null: the whole set, as in Karras et al. 2020. Samples of another
    size are resized to the reference."""
    weights: str | None = option(None, resume="free", sweep="no")
    """Path of the weights of `features`, on every node. Nothing is downloaded."""

    def __post_init__(self) -> None:
        for name in ("samples", "report_samples"):
            value = getattr(self, name)
            rule = "be 0 or at least 80, the fewest that metrics can be computed from"
            require(f"evaluation.{name}", value, rule, value == 0 or value >= 80)
        require_positive(self, "evaluation.", "every")
        if self.features != "classifier" and not self.weights:
            raise UserError(
                f"evaluation.features={self.features} needs a file of its weights; give"
                " --evaluation.weights FILE"
            )
        share = self.max_share
        require("evaluation.max_share", share, "lie in (0, 1]", 0 < share <= 1)
        known = ReferenceData.__annotations__
        if unknown := set(self.reference) - set(known):
            raise UserError(
                f"evaluation.reference: {', '.join(unknown)} must be one of {', '.join(known)}"
            )

    def is_enabled(self) -> bool:
        """Return whether samples are compared with reference images at all."""
        return self.samples > 0 or self.report_samples > 0


@dataclass(frozen=True)
class RayConfig:
    """Ray cluster and workers."""

    address: str | None = option(None, resume="free", sweep="no")
    """A running cluster ("auto" finds it). None: $RAY_ADDRESS, set for jobs, else a local Ray."""
    workers: str | int | None = option(None, resume="free", sweep="no")
    """DDP workers. None: one per GPU, or 2 on CPU. 2:8: an elastic run of 2 to 8 workers, as many
    as the nodes that come and go have room for. YAML needs quotes around it: "2:8"."""
    gpu: bool | None = option(None, resume="free", sweep="no")
    """Give each worker one GPU. None: if the cluster has any."""
    cpus_per_worker: int = option(1, resume="free", sweep="no")
    """CPU cores, and so torch threads, per worker; also threads of the report after training."""
    max_failures: int = option(3, resume="free", sweep="no")
    """Worker failures (out of memory, preempted, killed) to survive before giving up. Of an elastic
    run, those since its last checkpoint."""
    wait: float = option(30, resume="free", sweep="no")
    """Minutes to wait for resources that are in use, or on nodes that an autoscaler must start."""
    placement: Literal["pack", "spread"] = option("pack", resume="free", sweep="no")
    """Preferred placement of workers. pack: on as few nodes as possible. spread: on as many."""
    accelerator: str | None = option(None, resume="free", sweep="no")
    """Type of GPU that each worker needs, by Ray's name, such as A100 or H100. None: any."""
    labels: dict[str, str] = option(factory=dict, resume="free", sweep="no")
    """Labels that the node of each worker must have: --ray.labels '{"market": "spot"}'."""

    def __post_init__(self) -> None:
        self.worker_range()
        if not self.is_elastic() and self.workers is not None:
            object.__setattr__(self, "workers", int(self.workers))  # command lines are text
        require_positive(self, "ray.", "cpus_per_worker", "wait")
        failures = self.max_failures
        require("ray.max_failures", failures, "not be negative", failures >= 0)
        if self.accelerator and self.gpu is False:
            raise UserError(
                f"ray.accelerator={self.accelerator} needs GPU workers; leave out --ray.gpu false"
            )

    def is_elastic(self) -> bool:
        """Return whether `workers` is a range."""
        return ":" in str(self.workers)

    def worker_range(self) -> tuple[int, int] | None:
        """Return the smallest and the largest number of workers; None if `workers` is None.

        Raises:
            UserError: `workers` is neither a number nor a range.
        """
        if self.workers is None:
            return None
        found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", str(self.workers), re.ASCII)
        sizes = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        rule = "be a positive number, or a range of them such as 2:8"
        require("ray.workers", self.workers, rule, sizes[0] <= sizes[1])
        return sizes


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow store."""

    uri: str | None = option(None, resume="free", sweep="no", secret=True)
    """MLflow store or server. None: $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    experiment: str = option("celeba", resume="free", sweep="no")
    """MLflow experiment of the run."""
    patience: float = option(60, resume="free", sweep="no")
    """Seconds that MLflow has in all after training. The same command sends what it lacks then."""

    def __post_init__(self) -> None:
        require_positive(self, "tracking.", "patience")


@dataclass(frozen=True)
class Config:
    """All options of a training run."""

    preset: str = option("auto", resume="free", sweep="no")
    """Named configuration that the run starts from; auto picks one for the hardware."""
    name: str = option("", resume="fixed", sweep="no")
    """Run name. The same name resumes the run. Empty: preset and time."""
    home: Path = option(Path("~/.ganray"), resume="free", sweep="no")
    """Folder for shards, runs and the MLflow store; on a cluster, a disk that all nodes share."""
    storage: str | None = option(None, resume="free", sweep="no", secret=True)
    """URL that all nodes reach, if they share no disk: s3://bucket/ganray, or any other that fsspec
    opens. Shards, checkpoints, journals, pictures and reports go there, and the home is a folder of
    each node. None: all is in the home."""
    init_from: str = option("", resume="free", sweep="no")
    """Run, or folder of a run or checkpoint, whose networks a new run starts from: fine-tuning on
    other images. It must have ended, as running ones delete checkpoints. Optimizers start anew.
    Empty: random weights."""
    launcher: Literal["ray", "torch"] = option("ray", resume="free", sweep="no")
    """How training is started. ray: a TorchTrainer. torch: this process, or the processes of
    torchrun, without Ray."""
    dry_run: bool = option(False, resume="free", sweep="no")
    """Print the plan and exit."""
    log_level: LogLevel = option("info", resume="free", sweep="no")
    """Lowest level of log messages that are printed. debug: from all ranks, with timestamps."""
    profile: int = option(0, resume="free", sweep="no")
    """Steps of rank 0 to record with torch's profiler, at most 100, after 12 others. A trace and a
    table are left in the run folder and in MLflow. 0: none."""
    check_discriminator: bool = option(False, resume="fixed", sweep="no")
    """Only train D, in this process, to separate real images from noise, and plot the result."""
    data: DataConfig = field(default_factory=DataConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        self.reference_data()
        self._check_schedule()
        self._check_storage()
        require("profile", self.profile, "lie in 0 .. 100", 0 <= self.profile <= 100)
        bad = [c for c in self.name if not (c.isalnum() or c in "._-")]
        if bad or self.name.startswith("."):
            raise UserError(f"name={self.name!r} may hold letters, digits, '.', '_' and '-' only")
        size = self.data.crop or self.data.size
        name = "data.crop" if self.data.crop else "data.size"
        if self.network.kind == "resnet" and size not in (16, 32, 64, 128, 256):
            raise UserError(
                f"network.kind=resnet needs {name} to be 16, 32, 64, 128 or 256, not {size}; try"
                f" --{name} 64, or --network.kind dcgan, which takes any size from 16 on"
            )
        if self.network.kind != "mlp" and size < 16:
            raise UserError(
                f"network.kind={self.network.kind} needs {name} to be 16 or more, not {size};"
                f" try --{name} 64, or --network.kind mlp, which takes any size"
            )

    def _check_storage(self) -> None:
        """Raise UserError if the storage is no place for the files of other nodes."""
        storage = self.storage
        if storage is None:
            return
        if redact(storage) != storage or "?" in storage:
            raise UserError(
                f"storage={redact(storage).partition('?')[0]}: leave out user, password and query;"
                " credentials come from the environment of each node, such as AWS_ACCESS_KEY_ID"
            )
        local, home = Path(storage.removeprefix("file://")), self.home.expanduser()
        if local.is_relative_to(home) or home.is_relative_to(local):
            raise UserError(
                f"storage={storage} must not be, contain or be in home={home}; leave it out if all"
                " nodes share the home"
            )

    def _check_schedule(self) -> None:
        """Raise UserError if options of schedules and augmentation contradict each other."""
        schedule, augment, optimizer = self.schedule, self.augment, self.optimizer.name
        if schedule.beta2 is not None and optimizer in ("sgd", "rmsprop"):
            raise UserError(
                f"schedule.beta2={schedule.beta2} needs optimizer.name adam, adamw or lion, as"
                f" {optimizer} has no beta2; --schedule.beta2 null leaves it constant"
            )
        if schedule.augment_p is not None and (augment.policy != "ada" or augment.target):
            raise UserError(
                f"schedule.augment_p={schedule.augment_p} needs augment.policy=ada without"
                " augment.target; --schedule.augment_p null leaves it constant"
            )
        if augment.policy == "ada" and not (augment.p or augment.target or schedule.augment_p):
            raise UserError(
                "augment.policy=ada changes no image with augment.p=0; try --augment.p 0.2, or"
                " --augment.target 0.6 to adapt it"
            )
        if augment.target and self.loss.name in ("relativistic", "wgan", "lsgan"):
            raise UserError(
                f"augment.target={augment.target} needs a loss.name whose D is undecided at logit"
                f" 0, not {self.loss.name}; use --augment.p or --schedule.augment_p"
            )
        if augment.policy != "ada" and (augment.p or augment.target):
            raise UserError(
                "augment.p and augment.target need augment.policy=ada, not"
                f" {augment.policy}; add --augment.policy ada, or leave them out"
            )

    def reference_data(self) -> DataConfig:
        """Return the config of the reference images: `data` with `evaluation.reference` applied.

        Raises:
            UserError: The two do not fit each other.
        """
        reference = self.evaluation.reference
        try:
            data = dataclasses.replace(self.data, **reference)
        except UserError as error:
            raise UserError(f"evaluation.reference={reference}: {error}") from error
        if data.crop and data.size != self.data.size:
            raise UserError(
                f"evaluation.reference={reference}: crops of {data.crop} pixels from images of"
                f" data.size={data.size} and {self.data.size} show different parts; leave out the"
                " size"
            )
        return data

    def images_identity(self) -> tuple[object, ...]:
        """Return a key that is equal for runs with the same training and reference images."""
        return self.data.identity(), self.reference_data().identity()

    def run_folder(self) -> Path:
        """Return the folder of the run's config, journal, pictures and checkpoints."""
        return self.home / "runs" / self.name

    def pixel_min(self) -> float:
        """Return the value of black: 0 for the source text's sigmoid generator, else -1 (tanh)."""
        return 0.0 if self.network.kind == "mlp" else -1.0


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "latent": LatentConfig,
    "network": NetworkConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "schedule": ScheduleConfig,
    "augment": AugmentConfig,
    "evaluation": EvaluationConfig,
    "ray": RayConfig,
    "tracking": TrackingConfig,
}


def fields_where(key: str, *values: object) -> frozenset[str]:
    """Return the dotted names of all fields whose metadata `key` is one of `values`.

    Example: ``fields_where("secret", True)`` is ``{"data.root", "tracking.uri"}``.
    """
    sections = {"": Config, **{f"{name}.": section for name, section in SECTIONS.items()}}
    return frozenset(
        prefix + f.name
        for prefix, section in sections.items()
        for f in dataclasses.fields(section)
        if prefix + f.name not in SECTIONS and f.metadata[key] in values
    )
