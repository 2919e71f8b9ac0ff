"""Stacked MNIST, 1,000 modes: ganray's presets beside PacGAN's tables 2 and 3.

    python -m tests.benchmarks.stacked --root ~/mnist --seeds 3 --processes 2 --iterations 20000

Every run is `jobs/mnist.py PRESET --train.rng_seed N` without Ray, on one core. Finished runs are
not repeated; with more --iterations they continue. The reference classifier of MNIST, trained on
first use, recognizes the digit in each channel; the mode is 100 red + 10 green + blue.

Modes are counted as published, for G itself and from one sample on. Gated counts require a
confidence of p > 0.9 for all three digits, since uniform noise alone "captures" 98 modes. The notes
give the KL of an ideal sampler, which is above 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ganray.config.presets import STACKED
from ganray.data import prepare
from ganray.data.sources.mnist import FIRST_HELD_OUT, StackedMNIST
from ganray.data.transforms import to_uint8
from ganray.evaluation import classifier
from ganray.gan import latents
from ganray.metrics import modes
from ganray.progress import Progress
from ganray.training import journal
from ganray.training.state import generator_from_checkpoint, read_config, read_state
from tests.benchmarks import runs
from tests.benchmarks.gaussian_mixtures import ideal_kl

CLASSES = 1000
CONFIDENT = 0.9
BATCH = 1000
"""Images generated per batch."""


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    preset: str
    options: tuple[str, ...] = ()
    batches: int = 1
    """Batches of the preset per step: PacGAN uses as many packs as others use images."""

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.batches * STACKED[self.preset].train.batch_size

    @property
    def samples(self) -> int:
        """Number of samples that were published for this preset."""
        return 26_000 if self.preset == "stacked-t2" else 25_600


def variants(preset: str) -> tuple[Variant, ...]:
    """Return a preset as it is, and with each method against mode collapse."""
    short, R1 = preset.removeprefix("stacked-"), ("--loss.r1_gamma", "1")
    methods = {
        "": (),
        " LSGAN": ("--loss.name", "lsgan"),
        " hinge": ("--loss.name", "hinge"),
        " R1": R1,
        " Rp+R1+R2": ("--loss.name", "relativistic", *R1, "--loss.r2_gamma", "1"),
        " WGAN-GP": ("--loss.name", "wgan", "--loss.gp_weight", "10", "--train.G_every", "5"),
        " minibatch stddev": ("--network.minibatch_stddev", "4"),
        " spectral norm": ("--network.spectral_norm", "true"),
        " unrolled 5": ("--loss.unroll", "5"),
    }
    return (
        *(Variant(f"{short}{name}", preset, options) for name, options in methods.items()),
        *(
            Variant(f"{short} pack {pack}", preset, ("--network.pack", str(pack)), pack)
            for pack in (2, 3, 4)
        ),
    )


VARIANTS = tuple(variant for preset in STACKED for variant in variants(preset))
SHORT = ("t3-quarter", "t3-quarter Rp+R1+R2", "t3-quarter pack 2", "t3-half")
"""Rows that run by default."""

# (row, modes, KL in nats), as printed in the papers; see the notes under the table.
PUBLISHED: dict[str, tuple[tuple[str, str, str], ...]] = {
    "stacked-t3-quarter": (
        ("DCGAN, Metz et al. 2017", "30.6", "5.99"),
        ("unrolled 1, 5, 10; ibid.", "65.4, 236.4, 327.2", "5.91, 4.67, 4.66"),
        ("DCGAN, PacGAN table 3", "78.5 ± 17.6", "5.21"),
        ("PacDCGAN 2, 3, 4; ibid.", "484.5, 601.3, 667.4", "2.61, 2.00, 1.81"),
    ),
    "stacked-t3-half": (
        ("DCGAN, Metz et al. 2017", "628", "2.58"),
        ("unrolled 1, 5, 10; ibid.", "523.6, 732, 817.4", "2.44, 1.66, 1.43"),
        ("DCGAN, PacGAN table 3", "487.7", "2.24"),
        ("PacDCGAN 2, 3, 4; ibid.", "840.7, 866.6, 820.2", "1.00, 0.90, 1.15"),
    ),
    "stacked-t2": (
        ("DCGAN, VEEGAN", "99", "3.40"),
        ("VEEGAN", "150", "2.95"),
        ("DCGAN, PacGAN table 2", "78.9 ± 6.5", "4.50 ± 0.13"),
        ("PacDCGAN 2, 3, 4; ibid.", "1000, 1000, 1000", "0.06, 0.06, 0.07"),
    ),
}


@dataclass(frozen=True)
class ModeScores:
    """Modes of a set of images."""

    modes: int
    """Modes with at least one sample, of 1,000."""
    kl: float
    """KL of all samples to uniform in nats."""
    gated: int
    """Modes with a sample of which all three digits are confident."""
    confident: float
    """Share of such samples."""


@dataclass(frozen=True)
class RunResult:
    """Scores of one run."""

    G: ModeScores
    """Scores of G's own weights, as published."""
    G_ema: ModeScores
    """Scores of the averaged weights, from which ganray samples."""
    images_per_s: float
    """Throughput over the whole training, on one core."""


def main() -> None:
    """Run missing variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--home", type=Path, default=Path("~/.ganray-stacked").expanduser())
    parser.add_argument("--iterations", type=int, default=20_000, help="steps; published: 500,000")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="*", help=f"names of rows; else {SHORT}")
    options = parser.parse_args()
    known = [variant.name for variant in VARIANTS]
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only {sorted(unknown)}: not among {known}")
    chosen = [v for v in VARIANTS if v.name in (options.only or SHORT)]
    jobs = [(variant, seed) for seed in range(options.seeds) for variant in chosen]

    # Prepared here, or concurrent runs would all write the shards.
    data = replace(STACKED[chosen[0].preset].data, root=str(options.root))
    prepare.prepare_dataset(data, prepare.plan_dataset(data, options.home.resolve()))

    def run(job: tuple[Variant, int]) -> None:
        train(*job, options.iterations, options.root, options.home)

    with (
        Progress(len(jobs), "training", "runs") as progress,
        ThreadPoolExecutor(options.processes) as pool,
    ):
        for _ in pool.map(run, jobs):
            progress.add(1)
    classifier = runs.reference(options.root, options.home)
    real, accuracy = real_images(options.root, classifier)
    results = {
        variant: [
            evaluate(run_folder(variant, seed, options.home), variant.samples, classifier)
            for seed in range(options.seeds)
        ]
        for variant in chosen
    }
    print(table(results, real, options.iterations))
    print(notes(options.root, accuracy))


def run_folder(variant: Variant, seed: int, home: Path) -> Path:
    """Return the folder of a run."""
    return home / "runs" / f"{variant.name.replace(' ', '-').replace('+', '-')}-seed{seed}"


def steps_of(folder: Path) -> int:
    """Return the steps of the newest checkpoint; 0 if there is none."""
    return max(
        (int(path.name.split("_")[1]) for path in folder.glob("checkpoint_*[0-9]")), default=0
    )


def train(variant: Variant, seed: int, iterations: int, root: Path, home: Path) -> None:
    """Run one preset with one seed up to this number of steps, or continue it."""
    folder = run_folder(variant, seed, home)
    excess = steps_of(folder) - iterations
    if excess in (0, 1):  # kimg may be rounded up to one more step
        return
    if excess > 0:
        raise ValueError(
            f"{folder} has {excess} steps more than --iterations {iterations}; raise --iterations"
            " or use another --home"
        )
    kimg = iterations * variant.batch_size / 1000
    options = ["--train.kimg", str(kimg), "--train.batch_size", str(variant.batch_size)]
    runs.train(folder, variant.preset, seed, root, [*variant.options, *options])


def evaluate(folder: Path, samples: int, classifier: classifier.Classifier) -> RunResult:
    """Count the modes of a finished run; cached beside the checkpoint."""
    checkpoint = max(folder.glob("checkpoint_*[0-9]"))
    cached = checkpoint / f"modes-{samples}-{classifier.hash}.json"
    if cached.exists():
        content = json.loads(cached.read_text())
        scores = (ModeScores(**content[weights]) for weights in ("G", "G_ema"))
        return RunResult(*scores, content["images_per_s"])
    seen, rates = journal.history(folder, "speed/images_per_s")
    generator = generator_from_checkpoint(checkpoint)
    G_ema = score(generate(checkpoint, generator, samples), classifier)
    generator.load_state_dict(read_state(checkpoint)["G"])
    result = RunResult(
        G=score(generate(checkpoint, generator, samples), classifier),
        G_ema=G_ema,
        images_per_s=float(seen[-1] / (np.diff(seen, prepend=0) / rates).sum()),
    )
    cached.write_text(json.dumps(asdict(result)))
    return result


def generate(checkpoint: Path, G: torch.nn.Module, count: int) -> np.ndarray:
    """Return samples at the same latents for all runs, uint8 (count, 28, 28, 3)."""
    config = read_config(checkpoint)
    z = latents.sample(config.latent, count, rng_seed=0, stream="stacked", step=0, device=runs.CPU)
    with torch.no_grad():
        batches = [to_uint8(G(part), config.pixel_min()).numpy() for part in z.split(BATCH)]
    return np.concatenate(batches)


def score(images: np.ndarray, classifier: classifier.Classifier) -> ModeScores:
    """Count the modes of images, uint8 (n, 28, 28, 3)."""
    labels, confidences = classify(images, classifier)
    counts = modes.count(labels, CLASSES)
    gated = modes.count_confident(labels, confidences, CLASSES, at_least=CONFIDENT)
    return ModeScores(
        modes=modes.count_captured(counts),
        kl=modes.kl(counts),
        gated=modes.count_captured(gated),
        confident=float(gated.sum() / len(images)),
    )


def classify(
    images: np.ndarray, classifier: classifier.Classifier
) -> tuple[np.ndarray, np.ndarray]:
    """Return classes, int64 (n,) in [0, 1000), and the lowest confidence of the three digits."""
    probs = [
        classifier.predict(np.ascontiguousarray(images[..., channel, None])).softmax(1).numpy()
        for channel in range(3)
    ]
    digits = np.stack([p.argmax(1) for p in probs], 1)
    return digits @ np.array([100, 10, 1]), np.min([p.max(1) for p in probs], 0)


def real_images(root: Path, classifier: classifier.Classifier) -> tuple[ModeScores, float]:
    """Score the 26,000 held-out images, made of MNIST's test split; also return the accuracy."""
    source = StackedMNIST.open(root)
    held_out = source.ids >= FIRST_HELD_OUT
    images = source.digits.images[source.triples[held_out]].transpose(0, 2, 3, 1)
    labels, _ = classify(images, classifier)
    return score(images, classifier), float((labels == source.labels[held_out]).mean())


def table(results: dict[Variant, list[RunResult]], real: ModeScores, iterations: int) -> str:
    """Return a Markdown table of means over seeds with the half width of their 95 % t-interval."""
    lines = [
        "| | steps, seeds | modes | KL | gated | confident | G_ema: modes | KL | gated | confident"
        " | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| real images, held out | | {real.modes} | {real.kl:.3f} | {real.gated}"
        f" | {real.confident:.0%} | | | | | |",
    ]
    for preset, published in PUBLISHED.items():
        rows = [variant for variant in results if variant.preset == preset]
        for name, captured, kl in published if rows else ():
            lines.append(f"| *{name}* | | *{captured}* | *{kl}* | | | | | | | |")
        for variant in rows:
            scores = results[variant]
            cells = [f"`{variant.name}`", f"{iterations:,}, {len(scores)}"]
            cells += [*figures([o.G for o in scores]), *figures([o.G_ema for o in scores])]
            cells.append(f"{max(o.images_per_s for o in scores):,.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(scores: Sequence[ModeScores]) -> list[str]:
    """Return the four cells of one set of weights."""
    return [
        runs.mean([c.modes for c in scores], 1),
        runs.mean([c.kl for c in scores], 2),
        runs.mean([c.gated for c in scores], 1),
        f"{np.mean([c.confident for c in scores]):.0%}",
    ]


def notes(root: Path, accuracy: float) -> str:
    """Explain the figures, with the KL of an ideal sampler."""
    mnist = StackedMNIST.open(root, count=1).digits
    share = np.bincount(mnist.labels[mnist.split == 0], minlength=10) / (mnist.split == 0).sum()
    sampler = np.einsum("a,b,c->abc", share, share, share).ravel()
    ideal = {n: ideal_kl(n, sampler) for n in (25_600, 26_000)}
    ideal_text = "; ".join(
        f"{n:,} samples {mean:.4f} [{low:.4f}, {high:.4f}]"
        for n, (mean, low, high) in ideal.items()
    )
    return (
        f"\nKL of an ideal sampler in nats: {ideal_text}.\nThe classifier recognizes all three"
        f" digits in {accuracy:.1%} of the real images. Published rows are as printed; ± is theirs."
        " Ours: mean ± half width of the 95 % t-interval over seeds. t3: 25,600 samples, t2:"
        " 26,000.\nOurs have GroupNorm where the published nets have BatchNorm."
    )


if __name__ == "__main__":
    main()
