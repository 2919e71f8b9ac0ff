"""Named configurations; each states its cost and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ganray.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    RayConfig,
    TrackingConfig,
    TrainConfig,
)


def cpu32() -> Config:
    """32x32 faces by a narrow DCGAN: under 5 minutes on 2 CPU cores, ends with varied faces."""
    return Config(
        preset="cpu32",
        data=DataConfig(size=32),
        latent=LatentConfig(size=64),
        network=NetworkConfig(width_G=16, width_D=16),
        optimizer=OptimizerConfig(lr_G=1e-3, lr_D=1e-3, beta1=0.5, beta2=0.99),
        train=TrainConfig(
            kimg=75, batch_size=32, ema_kimg=2, log_every=5, sample_every=15, checkpoint_every=25
        ),
    )


def dcgan64() -> Config:
    """64x64 faces by the DCGAN at its published width, for GPUs: 2 CPU cores make 22 images/s."""
    return Config(
        preset="dcgan64",
        data=DataConfig(size=64),
        loss=LossConfig(r1_gamma=0.1),
        train=TrainConfig(kimg=5_000, sample_every=50, checkpoint_every=200),
    )


def mlp() -> Config:
    """The source text's MLP GAN on 20,000 full 218x178x3 faces; 20 images/s on 2 CPU cores."""
    return Config(
        preset="mlp",
        data=DataConfig(size=0, images=20_000, drawn=20_000),
        network=NetworkConfig(kind="mlp", width_G=300, width_D=100),
        optimizer=OptimizerConfig(lr_G=1e-4, lr_D=1e-4, beta1=0.9),
        train=TrainConfig(
            kimg=20, batch_size=8, ema_kimg=0, log_every=1, sample_every=5, checkpoint_every=10
        ),
    )


# The source text's MNIST nets learn from one image at a time. 64 at a time come to the same (README
# has both, measured) in a small part of the time, with rates that move the weights as far: times 64
# for SGD, times 8, the square root, for Adam. D's rate is twice G's: the text updates D twice for
# each image, by its real and by its fake half, where one update here takes the mean of both.
_BATCH = 64


def first() -> Config:
    """The source text's first MNIST GAN, D 784-200-1 and G 1-200-784: expect a collapse."""
    return Config(
        preset="first",
        data=DataConfig(source="mnist", download=True, size=0, split="train"),
        latent=LatentConfig("uniform", 1),
        network=NetworkConfig(
            kind="mlp", width_G=200, width_D=200, activation="sigmoid", layer_norm=False
        ),
        loss=LossConfig("mse"),
        optimizer=OptimizerConfig("sgd", lr_G=0.01 * _BATCH, lr_D=0.02 * _BATCH, beta1=0.0),
        train=TrainConfig(
            kimg=60,
            batch_size=_BATCH,
            ema_kimg=0,
            log_every=1,
            sample_every=7.5,
            checkpoint_every=30,
        ),
        ray=RayConfig(workers=1),  # a net this small is faster on one core than two can agree
        tracking=TrackingConfig(experiment="mnist"),
    )


def refined() -> Config:
    """Leaky ReLU, LayerNorm and Adam: clearer digits, and still a collapse."""
    base = first()
    return replace(
        base,
        preset="refined",
        network=replace(base.network, activation="leaky-relu", leak=0.02, layer_norm=True),
        optimizer=OptimizerConfig("adam", lr_G=8e-4, lr_D=16e-4, beta1=0.9),
        train=replace(base.train, kimg=240, log_every=4, sample_every=30, checkpoint_every=60),
    )


def latent_100() -> Config:
    """As refined, with a latent of size 100 instead of 1, still uniform."""
    return replace(refined(), preset="latent-100", latent=LatentConfig("uniform", 100))


def normal_100() -> Config:
    """As latent-100, with normal latents and the BCE loss: all ten digits."""
    return replace(
        refined(), preset="normal-100", latent=LatentConfig("normal", 100), loss=LossConfig("bce")
    )


def long() -> Config:
    """As normal-100, for three times as many epochs."""
    base = normal_100()
    return replace(
        base, preset="long", train=replace(base.train, kimg=720, log_every=12, sample_every=60)
    )


def conditional() -> Config:
    """As long, with the label given to both networks: the digit that is asked for."""
    base = long()
    return replace(base, preset="conditional", network=replace(base.network, conditional=True))


_CELEBA = (cpu32, dcgan64, mlp)
_MNIST = (first, refined, latent_100, normal_100, long, conditional)


def _name(make: Callable[[], Config]) -> str:
    return make.__name__.replace("_", "-")


CELEBA: dict[str, Config] = {_name(make): make() for make in _CELEBA}
"""The presets of jobs/celeba.py."""

MNIST: dict[str, Config] = {_name(make): make() for make in _MNIST}
"""The presets of jobs/mnist.py, in the order in which the source text comes to them."""

ABOUT: dict[str, str] = {_name(make): make.__doc__ or "" for make in (*_CELEBA, *_MNIST)}
"""What each preset costs and gives, for --help."""
