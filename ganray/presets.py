"""Named configurations; each states its cost and what to expect."""

from __future__ import annotations

from ganray.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
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


_CELEBA = (cpu32, dcgan64, mlp)

CELEBA: dict[str, Config] = {make.__name__: make() for make in _CELEBA}
"""The presets of jobs/celeba.py."""

ABOUT: dict[str, str] = {make.__name__: make.__doc__ or "" for make in _CELEBA}
"""What each preset costs and gives, for --help."""
