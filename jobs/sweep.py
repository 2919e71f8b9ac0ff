"""Which latent, which optimizer collapses? Many runs on Ray Tune, compared in the MLflow UI.

Runs every combination of the axes' levels with several seeds, each a normal training run, and ends
with a ranking with intervals, how much each axis explains, heat maps, samples of every cell, and a
paragraph that says only what the intervals support: in the terminal, as one HTML file, and in
MLflow, with a view that opens the comparison.

Without any axis: MNIST, latents that differ in mean, spread and shape x size 1, 10, 100 x three
optimizers x 5 seeds. An axis is a field of how a GAN learns, or of what it learns (runs are then
compared with the base's images, unless it says what images show: data.source, data.root or
data.crop); several fields joined by +; `optimizer` or `rate`.

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
    """Parse, show the plan, run the study, answer it, say where to look."""
    presets = SWEEPS | CELEBA | MNIST | STACKED
    config, options = cli.parse_sweep(argv, presets, "latents", __doc__ or "")
    # Torch, Ray and MLflow take seconds to import, so --help and a typing error come before them.
    from ganray.commands.sweep import sweep

    sweep(config, options, cli.value_of)


if __name__ == "__main__":
    cli.run(main)
