"""The source text's claims about MNIST: a table and a picture of each preset with several seeds.

    python -m tests.benchmarks.claims --root ~/mnist --seeds 5 --processes 2

Every run is `jobs/mnist.py PRESET --train.rng_seed N` without Ray, on one core. Finished runs are
not repeated. The reference classifier, trained on first use, recognizes the digits.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganray.config.schema import LatentConfig
from ganray.data.transforms import to_uint8
from ganray.evaluation import classifier
from ganray.figures import Row, labeled_rows
from ganray.gan import latents, networks
from ganray.metrics import modes
from ganray.progress import Progress
from ganray.training import journal
from ganray.training.state import generator_from_checkpoint, read_config
from tests.benchmarks import runs

SAMPLES = 10_000
SHARE = 0.01
"""Minimum share of the samples for a digit to count as generated, a tenth of its share in MNIST."""


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    preset: str
    options: tuple[str, ...] = ()
    max_seeds: int = 99
    """Maximum number of seeds: a run of batch 1 takes as long as a hundred others."""

    def seeds(self, count: int) -> range:
        """Return at most `count` seeds."""
        return range(min(count, self.max_seeds))


VARIANTS = (
    *(Variant(name, name) for name in ("first", "refined", "latent-100", "normal-100")),
    Variant("normal-100, MSE", "normal-100", ("--loss.name", "mse")),
    Variant("long", "long"),
    Variant("conditional", "conditional"),
    Variant("first, batch 1", "first", ("--train.batch_size", "1", "--optimizer.lr_G", "0.01",
            "--optimizer.lr_D", "0.02"), max_seeds=2),
    Variant("normal-100, batch 1", "normal-100", ("--train.batch_size", "1",
            "--optimizer.lr_G", "1e-4", "--optimizer.lr_D", "2e-4"), max_seeds=1),
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """Scores of one run."""

    digits: int
    """Digits, of ten, with at least SHARE of the samples."""
    counts: list[int]
    """Samples per digit."""
    kl: float
    """KL of the digits to uniform in nats."""
    confident: float
    """Share of samples with a digit of probability above 0.9."""
    D_loss: float
    """Mean discriminator loss over the last tenth of the run."""
    G_loss: float
    """Mean generator loss over the last tenth of the run."""
    seconds: float
    """Time spent in training steps."""


def main() -> None:
    """Run missing presets, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--home", type=Path, default=Path("~/.ganray-claims").expanduser())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--picture", type=Path, default=Path("claims.png"))
    options = parser.parse_args()
    variants = [v for v in VARIANTS if not options.only or v.name in options.only]
    jobs = [(variant, seed) for variant in variants for seed in variant.seeds(options.seeds)]
    jobs.sort(key=lambda job: job[1])  # if stopped early, all variants have as many runs
    with (
        Progress(len(jobs), "training", "runs") as progress,
        ThreadPoolExecutor(options.processes) as pool,
    ):
        for _ in pool.map(lambda job: train(*job, options.root, options.home), jobs):
            progress.add(1)
    classifier = runs.reference(options.root, options.home)
    results = {
        variant.name: [
            evaluate(run_folder(variant, seed, options.home), classifier)
            for seed in variant.seeds(options.seeds)
        ]
        for variant in variants
    }
    print(table(variants, results, options.home))
    rows = [picture_row(variant, options.home) for variant in variants]
    Image.fromarray(labeled_rows([rows])).save(options.picture)


def run_folder(variant: Variant, seed: int, home: Path) -> Path:
    """Return the folder of a run."""
    name = variant.name.replace(", ", "-").replace(" ", "-")
    return home / "runs" / f"{name}-seed{seed}"


def train(variant: Variant, seed: int, root: Path, home: Path) -> None:
    """Run one preset with one seed, unless it is finished."""
    folder = run_folder(variant, seed, home)
    if (folder / "samples.png").exists():
        return
    runs.train(folder, variant.preset, seed, root, variant.options)


def evaluate(folder: Path, classifier: classifier.Classifier) -> RunResult:
    """Sample the generator of a finished run and count its digits."""
    cached = folder / "outcome.json"
    if cached.exists():
        return RunResult(**json.loads(cached.read_text()))
    probs = classifier.predict(samples(folder, SAMPLES)).softmax(1).numpy()
    counts = modes.count(probs.argmax(1), 10)
    losses = {name: journal.history(folder, name)[1] for name in ("loss/D", "loss/G")}
    seen, rates = journal.history(folder, "speed/images_per_s")
    tenth = max(1, len(rates) // 10)
    result = RunResult(
        digits=modes.count_captured(counts, share=SHARE),
        counts=counts.tolist(),
        kl=modes.kl(counts),
        confident=float((probs.max(1) > 0.9).mean()),
        D_loss=float(losses["loss/D"][-tenth:].mean()),
        G_loss=float(losses["loss/G"][-tenth:].mean()),
        seconds=float((np.diff(seen, prepend=0) / rates).sum()),
    )
    cached.write_text(json.dumps(vars(result)))
    return result


def samples(folder: Path, count: int) -> np.ndarray:
    """Return samples of a run's G_ema at fixed latents, uint8 (count, 28, 28, 1); labels cycle."""
    checkpoint = max(folder.glob("checkpoint_*"))
    config, G = read_config(checkpoint), generator_from_checkpoint(checkpoint)
    z = latents.sample(config.latent, count, rng_seed=0, stream="claims", step=0, device=runs.CPU)
    if config.network.conditional:
        labels = networks.one_hot_labels(torch.arange(count) % 10, 10)
        z = torch.cat([z, labels], 1)
    return to_uint8(G(z), config.pixel_min()).numpy()


def table(variants: list[Variant], results: dict[str, list[RunResult]], home: Path) -> str:
    """Return a Markdown table of means over seeds, with 95 % t-intervals of the KL.

    Seconds are those of the fastest run.
    """
    lines = [
        "| preset | latent | loss, optimizer, batch | digits of 10, each seed | KL to uniform"
        " | confident | D loss | G loss | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant in variants:
        rows = results[variant.name]
        config = read_config(run_folder(variant, 0, home))
        lines.append(
            f"| `{variant.name}` | {latent(config.latent)}"
            f" | {config.loss.name}, {config.optimizer.name} {config.optimizer.lr_G:g},"
            f" {config.train.batch_size} | {', '.join(str(o.digits) for o in rows)}"
            f" | {runs.mean([o.kl for o in rows], 2)}"
            f" | {100 * np.mean([o.confident for o in rows]):.0f} %"
            f" | {np.mean([o.D_loss for o in rows]):.2f}"
            f" | {np.mean([o.G_loss for o in rows]):.2f}"
            f" | {min(o.seconds for o in rows):.0f} |"
        )
    return "\n".join(lines)


def latent(config: LatentConfig) -> str:
    """Return distribution and size."""
    return f"{config.distribution} {config.size}"


def picture_row(variant: Variant, home: Path) -> Row:
    """Return the first ten samples of the first seed."""
    return Row(samples(run_folder(variant, 0, home), 10), variant.name.replace(", ", ",\n"))


if __name__ == "__main__":
    main()
