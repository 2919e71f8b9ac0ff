"""Sweep latents, optimizers or any other option: many runs on Ray Tune, compared in MLflow.

Trains every combination of the axes' levels with several seeds and reports a ranking with
confidence intervals, pairwise differences, the share of the variance that each axis explains, heat
maps, and samples of every setting: in the terminal, as an HTML page, and in MLflow.

Without an axis: MNIST, latents of different mean, spread and shape x size 1, 10, 100 x three
optimizers x 5 seeds. An axis varies an option of the data, latents, networks, loss, optimizer or
training; several options joined by +; `optimizer` (named optimizers with learning rates of their
own) or `rate` (a factor on the learning rates).

    python jobs/sweep.py
    python jobs/sweep.py --sweep.axis latent.size=1,10,100 --sweep.axis optimizer=sgd,adam
    python jobs/sweep.py --sweep.axis latent.distribution+latent.scaling=uniform+raw,uniform+centred
    python jobs/sweep.py cpu32 --sweep.axis loss.name=bce,hinge,relativistic --sweep.seeds 3
    python jobs/sweep.py --sweep.axis data.images=500,5000,null
    python jobs/sweep.py --sweep.design tpe --sweep.axis rate=0.1..10 --sweep.settings 30
    python jobs/sweep.py --resume
    ray job submit --working-dir . -- python jobs/sweep.py --name latents --home /mnt/shared/ganray
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.config import cli
from ganray.config.presets import CELEBA, MNIST, STACKED, SWEEPS


def main(argv: Sequence[str]) -> None:
    """Parse the options, then plan, run and report the sweep."""
    presets = SWEEPS | CELEBA | MNIST | STACKED
    config, options = cli.parse_sweep(argv, presets, "latents", __doc__ or "")
    # Torch, Ray and MLflow take seconds to import, so --help and option errors come first.
    from ganray.commands.sweep import sweep

    sweep(config, options, cli.value_of)


if __name__ == "__main__":
    cli.run(main)
