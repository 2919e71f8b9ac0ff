"""Named configurations; each states its cost and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ganray.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LatentConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    RayConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)
from ganray.config.serialization import flatten, typed


def cpu32() -> Config:
    """32x32 faces by a narrow DCGAN: 2 to 6 minutes on a CPU, ends with varied faces."""
    return Config(
        data=DataConfig(size=32, split="train"),
        latent=LatentConfig(size=64),
        network=NetworkConfig(width_G=32, width_D=32),
        optimizer=OptimizerConfig(lr_G=1e-3, lr_D=1e-3, beta1=0.5, beta2=0.99),
        train=TrainConfig(
            kimg=75, batch_size=16, ema_kimg=2, log_every=5, sample_every=15, checkpoint_every=25
        ),
        # On two cores one worker is up to 1.3 times as fast as two that exchange gradients.
        ray=RayConfig(workers=1),
    )


def limited32() -> Config:
    """The preset cpu32 for 500 to 10,000 images: adaptive ADA, four times as long.

    On 500 faces it covers 0.50 of all, 0.44 without ADA: 5 to 15 minutes.
    """
    base = cpu32()
    return replace(
        base,
        augment=AugmentConfig("ada", target=0.6, adapt_kimg=50),
        train=replace(base.train, kimg=300, sample_every=30, checkpoint_every=50),
    )


def dcgan64() -> Config:
    """64x64 faces by the DCGAN at its published width, for GPUs. 2 CPU cores make 22 images/s."""
    return Config(
        data=DataConfig(size=64),
        loss=LossConfig(r1_gamma=0.1),
        train=TrainConfig(kimg=5_000, sample_every=50, checkpoint_every=200),
    )


def r3_64() -> Config:
    """64x64 images by an R3GAN of 3.1 million parameters, for GPUs; not trained on one yet.

    R3GAN's recipe (Huang et al. 2024) with FFHQ-64's gamma. Its published network is r3gan-ffhq64.
    """
    return Config(
        data=DataConfig(size=64, flip=True),
        latent=LatentConfig(size=64),
        network=NetworkConfig(kind="resnet", width_G=64, width_D=64),
        loss=LossConfig("relativistic", r1_gamma=2.0, r2_gamma=2.0),
        optimizer=OptimizerConfig(beta1=0.0, beta2=0.9),
        train=TrainConfig(
            kimg=20_000,
            batch_size=256,
            ema_kimg=0,
            log_every=20,
            sample_every=200,
            checkpoint_every=500,
            precision="bf16",
        ),
        schedule=ScheduleConfig(lr_factor=0.25, beta2=0.99, gamma_factor=0.1, ema_kimg=500),
    )


def r3_32_small() -> Config:
    """32x32 images by an R3GAN of 0.55 million parameters: a small GPU or 16 cores. Never run.

    The gamma is ImageNet-32's; CIFAR-10's is a tenth of it.
    """
    base = r3_64()
    return replace(
        base,
        data=replace(base.data, size=32),
        network=replace(base.network, width_G=32, width_D=32, max_width=256),
        loss=replace(base.loss, r1_gamma=0.5, r2_gamma=0.5),
        train=replace(
            base.train,
            kimg=2_000,
            batch_size=128,
            log_every=10,
            sample_every=50,
            checkpoint_every=100,
        ),
        schedule=replace(base.schedule, ema_kimg=50),
    )


def r3gan_ffhq64() -> Config:
    """64x64 images by R3GAN's network of FFHQ, 22.4 million parameters: eight GPUs. Never run.

    Published: FID 1.95. With --data.source folder --data.root FFHQ. The length is ours.
    """
    base = r3_64()
    return replace(
        base,
        network=replace(base.network, width_G=384, width_D=384, max_width=768, blocks=2),
        augment=AugmentConfig("ada"),
        schedule=replace(base.schedule, augment_p=0.3),
    )


def r3gan_cifar10() -> Config:
    """CIFAR-10 by R3GAN's network, 21 million parameters, conditional: eight GPUs. Never run.

    Published: FID 1.96 after 250,000 kimg, 768 hours of an L40.
    """
    base = r3gan_ffhq64()
    return replace(
        base,
        data=DataConfig("cifar10", download=True, size=32, split="train", flip=True),
        network=replace(base.network, width_G=768, width_D=768, conditional=True),
        loss=replace(base.loss, r1_gamma=0.05, r2_gamma=0.05),
        train=replace(base.train, kimg=250_000, batch_size=512),
        schedule=replace(base.schedule, kimg=20_000, ema_kimg=5_000, augment_p=0.55),
        tracking=TrackingConfig(experiment="cifar10"),
    )


def mlp() -> Config:
    """The source text's MLP GAN on 20,000 full 218x178x3 faces: 5 minutes on 2 CPU cores."""
    return Config(
        data=DataConfig(size=0, images=20_000, faces=20_000),
        network=NetworkConfig(kind="mlp", width_G=300, width_D=100),
        # The text's 1e-4 at batch 1, scaled as in the MNIST presets below: by the root of 32, twice
        # that for D.
        optimizer=OptimizerConfig(lr_G=5.6e-4, lr_D=11.2e-4, beta1=0.9),
        train=TrainConfig(
            kimg=20, batch_size=32, ema_kimg=0, log_every=1, sample_every=2.5, checkpoint_every=10
        ),
        # On CPU one worker of two threads is 1.7 times as fast as two that exchange 188 MB a step.
        ray=RayConfig(cpus_per_worker=2),
    )


# The source text trains its MNIST networks on one image per step. Batches of 64 give the same
# results much faster (the README compares both), with learning rates scaled by 64 for SGD and by
# its square root, 8, for Adam. D's rate is twice G's: the text updates D twice per image, on a real
# and on a fake one, while one update here averages both.
_BATCH = 64


def first() -> Config:
    """The source text's first GAN, D 784-200-1, G 1-200-784. 6 s on one core: total collapse."""
    return Config(
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
        ray=RayConfig(workers=1),  # gradients of two workers take longer to average than to compute
        tracking=TrackingConfig(experiment="mnist"),
    )


def refined() -> Config:
    """The preset first with leaky ReLU, LayerNorm and Adam, 4 epochs. 30 s: D wins, G collapses."""
    base = first()
    return replace(
        base,
        network=replace(base.network, activation="leaky-relu", leak=0.02, layer_norm=True),
        optimizer=OptimizerConfig("adam", lr_G=8e-4, lr_D=16e-4, beta1=0.9),
        train=replace(base.train, kimg=240, log_every=4, sample_every=30, checkpoint_every=60),
    )


def latent_100() -> Config:
    """The preset refined with a uniform latent of size 100. 31 s: collapses."""
    return replace(refined(), latent=LatentConfig("uniform", 100))


def normal_100() -> Config:
    """The preset latent-100 with normal latents and BCE. 30 s: varied; digits 1 and 4 are rare."""
    return replace(refined(), latent=LatentConfig("normal", 100), loss=LossConfig("bce"))


def long() -> Config:
    """The preset normal-100 for 12 epochs instead of 4. 87 s: nine digits, more evenly."""
    base = normal_100()
    return replace(base, train=replace(base.train, kimg=720, log_every=12, sample_every=60))


def conditional() -> Config:
    """The preset long with class labels for both networks. 90 s: samples match their label."""
    base = long()
    return replace(base, network=replace(base.network, conditional=True))


def stacked_t3_quarter() -> Config:
    """Three digits an image, 1,000 modes, D 1/4 of G (PacGAN, table 3; published: 79 modes).

    20,000 steps = 2,560 kimg, 24 minutes on one core (1,780 images/s): 37 to 297 modes in 3 seeds,
    none of them sharp. The published 500,000 steps are --train.kimg 64000, 10 hours.
    """
    return Config(
        data=DataConfig(source="stacked-mnist", download=True, size=28, split="train"),
        latent=LatentConfig("normal", 256),
        network=NetworkConfig(kind="metz", width_G=8, width_D=2),
        optimizer=OptimizerConfig("adam", lr_G=1e-4, lr_D=2e-4, beta1=0.5, beta2=0.99),
        train=TrainConfig(
            kimg=2_560, batch_size=128, log_every=32, sample_every=256, checkpoint_every=512
        ),
        ray=RayConfig(workers=1),  # as in first
        tracking=TrackingConfig(experiment="stacked-mnist"),
    )


def stacked_t3_half() -> Config:
    """The preset stacked-t3-quarter with D half of G, as fast (published: 488 modes)."""
    base = stacked_t3_quarter()
    return replace(base, network=replace(base.network, width_D=4))


def stacked_t2() -> Config:
    """The same images by a DCGAN of 64 channels (PacGAN, table 2; published: 79 modes): for GPUs.

    50 epochs; one core makes 136 images/s, all 6,400 kimg in 13 hours. The published latents
    are uniform in (-1, 1) where these are normal, and the pixels from 0.
    """
    base = stacked_t3_quarter()
    return replace(
        base,
        latent=LatentConfig("normal", 100),
        network=NetworkConfig(width_G=64, width_D=64),
        optimizer=OptimizerConfig(beta1=0.5),
        train=replace(base.train, kimg=6_400, batch_size=64, G_steps=2),
        ray=RayConfig(),
    )


def stacked_r3gan() -> Config:
    """Stacked MNIST at 32x32 by R3GAN's network, 20.7 million parameters (published: 1000 modes).

    Published with it: KL 0.029. For GPUs; not run on one. The gamma and the length are ours.
    """
    base, published = stacked_t3_quarter(), r3gan_ffhq64()
    return replace(
        base,
        data=replace(base.data, size=32),
        latent=published.latent,
        network=replace(published.network, width_G=768, width_D=768),
        loss=LossConfig("relativistic", r1_gamma=1.0, r2_gamma=1.0),
        optimizer=published.optimizer,
        train=replace(published.train, kimg=10_000, batch_size=256),
        schedule=replace(published.schedule, augment_p=None),
        ray=RayConfig(),
    )


def latents() -> Config:
    """The preset normal-100 for 2 epochs, the default of jobs/sweep.py. 15 s on one core."""
    base = normal_100()
    return replace(
        base,
        train=replace(base.train, kimg=120, log_every=5, checkpoint_every=60),
        # Every run is evaluated at the same points, which takes a tenth of the time.
        evaluation=EvaluationConfig(samples=2_000, max_share=1.0, report_samples=0),
        tracking=TrackingConfig(experiment="latents"),
    )


ABOUT: dict[str, str] = {}
"""Description of each preset for --help: cost and result."""


def _by_name(*makers: Callable[[], Config]) -> dict[str, Config]:
    """Return the presets by the names of their functions, with dashes."""
    named = {make.__name__.replace("_", "-"): make for make in makers}
    ABOUT.update({name: make.__doc__ or "" for name, make in named.items()})
    return {name: replace(make(), preset=name) for name, make in named.items()}


CELEBA = _by_name(cpu32, limited32, dcgan64, r3_64, r3_32_small, r3gan_ffhq64, r3gan_cifar10, mlp)
"""Presets of jobs/celeba.py."""

MNIST = _by_name(first, refined, latent_100, normal_100, long, conditional)
"""Presets of jobs/mnist.py in the order of the source text."""

STACKED = _by_name(stacked_t3_quarter, stacked_t3_half, stacked_t2, stacked_r3gan)
"""Further presets of jobs/mnist.py: stacked MNIST, the standard test of mode collapse."""

SWEEPS = _by_name(latents)
"""Presets of jobs/sweep.py, beside all others."""


def changed_options(config: Config) -> dict[str, str]:
    """Return the options that differ from the config's preset, with their values as typed.

    Empty for a preset that is not known here.
    """
    preset = (CELEBA | MNIST | STACKED | SWEEPS).get(config.preset)
    if preset is None:
        return {}
    values, defaults = flatten(config), flatten(preset)
    ignored = ("name", "home", "dry_run")
    return {k: typed(v) for k, v in values.items() if k not in ignored and v != defaults.get(k)}
