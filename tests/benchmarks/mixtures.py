"""Methods against mode collapse on the ring of 8 and the grid of 25 modes, with published rows.

    python -m tests.benchmarks.mixtures --iterations 7000 --seeds 5 --processes 2

This takes 40 minutes on two cores, a third of it for the unrolled row.

Small networks learn points, as images (2, 1, 1), with ganray's training steps, objectives and
optimizers. A run depends on variant, mixture, seed and iterations only, and uses one core. Results
are JSON lines in --home, so an interrupted benchmark continues. 2,500 points of G and of G_ema are
scored, as in the papers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import nn

from ganray.config.schema import (
    LatentConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from ganray.gan import ema, latents
from ganray.gan.regularization import apply_regularizers
from ganray.gan.step import (
    DiscriminatorObjective,
    GeneratorObjective,
    discriminator_step,
    generator_step,
)
from ganray.progress import Progress
from ganray.training.state import build_optimizer
from tests.benchmarks.gaussian_mixtures import (
    HIGH_QUALITY,
    MIXTURES,
    Mixture,
    MixtureScores,
    ideal_kl,
)
from tests.benchmarks.runs import CPU, mean

SAMPLES = 2_500
LATENT = LatentConfig("normal", 2)
BLOCK = 500
"""Steps per draw of points and latents: one draw per step takes longer than G."""
EMA_STEPS = 500
"""Half-life of G_ema."""


@dataclass(frozen=True)
class Nets:
    """Networks and their training settings."""

    name: str
    batch_size: int
    optimizer: OptimizerConfig
    build: Callable[[int], tuple[nn.Module, nn.Module]]
    """Function of `pack` that returns (G, D); D maps `pack` points to one logit."""


def small(pack: int) -> tuple[nn.Module, nn.Module]:
    """Return networks with two hidden layers of 128 leaky ReLUs each."""

    def mlp(inputs: int, outputs: int) -> list[nn.Module]:
        hidden = [nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2)]
        return [*hidden, nn.Linear(128, outputs)]

    return (
        nn.Sequential(*mlp(LATENT.size, 2), nn.Unflatten(1, (2, 1, 1))),
        nn.Sequential(nn.Flatten(), *mlp(2 * pack, 1), nn.Flatten(0)),
    )


class Maxout(nn.Module):
    """A layer whose units are the maximum of five linear maps (Goodfellow et al. 2013)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps = nn.Linear(inputs, 5 * outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs) to (n, outputs)."""
        return self.maps(x).unflatten(1, (-1, 5)).amax(2)


def published(pack: int) -> tuple[nn.Module, nn.Module]:
    """Return PacGAN's networks, with LayerNorm for BatchNorm.

    G has four layers of 400 ReLUs, D three layers of 200 maxout units.
    """
    widths = (LATENT.size, 400, 400, 400, 400)
    hidden: list[nn.Module] = []
    for into, out in pairwise(widths):
        hidden += [nn.Linear(into, out, bias=False), nn.LayerNorm(out), nn.ReLU()]
    G = nn.Sequential(*hidden, nn.Linear(400, 2), nn.Unflatten(1, (2, 1, 1)))
    maxouts = [Maxout(into, 200) for into in (2 * pack, 200, 200)]
    D = nn.Sequential(nn.Flatten(), *maxouts, nn.Linear(200, 1), nn.Flatten(0))
    for layer in (*G.modules(), *D.modules()):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return G, D


# With betas (0.9, 0.99) G oscillates, and few of its points have high quality after as many steps.
SMALL = Nets("small", 128, OptimizerConfig("adam", 1e-3, 1e-3, beta1=0.5, beta2=0.999), small)
PUBLISHED = Nets("published", 100, OptimizerConfig("adam", 1e-4, 1e-4, beta1=0.8), published)


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    loss: LossConfig = field(default_factory=LossConfig)
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig("mlp"))
    """Regularization of D; the network itself comes from ``Nets``."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Only G_every is used."""


R1 = LossConfig("bce", r1_gamma=0.1)
VARIANTS = (
    Variant("non-saturating"),
    Variant("LSGAN", LossConfig("lsgan")),
    Variant("hinge", LossConfig("hinge")),
    Variant("WGAN-GP", LossConfig("wgan", gp_weight=10.0), train=TrainConfig(G_every=5)),
    Variant("NS + R1", R1),
    Variant("Rp + R1 + R2", replace(R1, name="relativistic", r2_gamma=0.1)),
    Variant("pack 2", network=NetworkConfig("mlp", pack=2)),
    Variant("pack 4", network=NetworkConfig("mlp", pack=4)),
    Variant("minibatch stddev", network=NetworkConfig("mlp", minibatch_stddev=4)),
    Variant("spectral norm", network=NetworkConfig("mlp", spectral_norm=True)),
    Variant("unrolled 5", LossConfig("bce", unroll=5)),
)

# (row, then modes, high quality in % and reverse KL on the ring, and the same on the grid).
PAPERS = (
    ("GAN, VEEGAN", "1", "99.3", "", "3.3", "0.5", ""),
    ("unrolled 5, VEEGAN", "7.6", "35.6", "", "23.6", "16", ""),
    ("VEEGAN, VEEGAN", "8", "52.9", "", "24.6", "40", ""),
    ("GAN, PacGAN table 1", "6.3 ± 0.5", "98.2", "0.45", "17.3 ± 0.8", "94.8", "0.70"),
    ("PacGAN 2; ibid.", "7.9", "95.6", "0.07", "23.8", "91.3", "0.13"),
    ("PacGAN 3; ibid.", "7.8", "97.7", "0.10", "24.6", "94.2", "0.06"),
    ("PacGAN 4; ibid.", "7.8", "95.9", "0.07", "24.8 ± 0.2", "93.6", "0.04"),
)

Scored = dict[str, Any]
"""A line of the results: settings, speed, scores of `G` and `G_ema` (None if diverged)."""


@dataclass(frozen=True)
class Run:
    """Everything that a result depends on."""

    variant: Variant
    mixture: str
    rng_seed: int
    iterations: int
    nets: str

    def key(self) -> str:
        """Return 16 hex digits that identify all settings."""
        nets = NETS[self.nets]
        text = f"{self} {nets.batch_size} {nets.optimizer} {LATENT} {EMA_STEPS}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


NETS = {nets.name: nets for nets in (SMALL, PUBLISHED)}


def main() -> None:
    """Run missing variants, print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("~/.ganray-mixtures").expanduser())
    parser.add_argument("--iterations", type=int, default=7_000, help="steps of D")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURES), choices=list(MIXTURES))
    parser.add_argument("--published", action="store_true", help="PacGAN's nets (400,000 steps)")
    parser.add_argument("--picture", type=Path, default=Path("mixtures.png"))
    options = parser.parse_args()
    known = [variant.name for variant in VARIANTS]
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only {sorted(unknown)}: not among {known}")
    nets = PUBLISHED.name if options.published else SMALL.name
    chosen = [v for v in VARIANTS if v.name in (options.only or known)]
    runs = [
        Run(variant, mixture, seed, options.iterations, nets)
        for seed in range(
            options.seeds
        )  # outermost: if stopped early, all variants have as many runs
        for variant in chosen
        for mixture in options.mixtures
    ]
    scored = results(runs, options.home, options.processes)
    for weights in ("G", "G_ema"):
        print(table(chosen, options.mixtures, scored, weights), end="\n\n")
    print(notes(options.mixtures, options.iterations, options.seeds, NETS[nets]))
    draw(chosen, options.mixtures, scored, options.picture)


def results(runs: Sequence[Run], home: Path, processes: int) -> dict[Run, Scored]:
    """Return the results of all runs, from the file or computed."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "results.jsonl"
    known = {line["key"]: line for line in read(path)}
    missing = [run for run in runs if run.key() not in known]
    # A fork would share the state of torch's threads.
    context = multiprocessing.get_context("spawn")
    with (
        Progress(max(len(missing), 1), "training", "runs") as progress,
        ProcessPoolExecutor(processes, context) as pool,
        path.open("a") as file,
    ):
        try:
            for done in as_completed([pool.submit(train, run) for run in missing]):
                line = done.result()
                known[line["key"]] = line
                file.write(json.dumps(line) + "\n")
                file.flush()
                progress.add(1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupt starts no other run
    return {run: known[run.key()] for run in runs}


def read(path: Path) -> list[Scored]:
    """Read the complete lines, and remove a truncated last one."""
    text = path.read_text() if path.exists() else ""
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        path.write_text(complete)
    return [json.loads(line) for line in complete.splitlines()]


def train(run: Run) -> Scored:
    """Train G and D on one core and score them."""
    torch.set_num_threads(1)
    variant, nets, mixture = run.variant, NETS[run.nets], MIXTURES[run.mixture]
    seed, pack = run.rng_seed, variant.network.pack
    size = nets.batch_size * pack  # PacGAN uses as many packs as others use points
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(latents.derive_seed(seed, "weights", 0))
        G, D = nets.build(pack)
        D = apply_regularizers(D, variant.network)
        G_ema, _ = nets.build(pack)
    G_ema.load_state_dict(G.state_dict())
    averaged, latest = ([p.detach() for p in net.parameters()] for net in (G_ema, G))
    D_objective = DiscriminatorObjective(D, variant.loss)
    G_objective = GeneratorObjective(G, D, variant.loss)
    D_optimizer = build_optimizer(nets.optimizer, D, nets.optimizer.lr_D)
    G_optimizer = build_optimizer(nets.optimizer, G, nets.optimizer.lr_G)
    started = time.perf_counter()
    for step in range(run.iterations):
        i = step % BLOCK
        if i == 0:
            block = step // BLOCK
            real = block_of(torch.from_numpy(mixture.sample(BLOCK * size, seed, block)), size)
            z_D, z_G = (noise(LATENT, size, seed, stream, block) for stream in ("D", "G"))
            alphas = noise(LatentConfig("uniform", 1), size // pack, seed, "penalty", block)
        alpha = alphas[i].flatten().repeat_interleave(pack) if variant.loss.gp_weight else None
        points = real[i, :, :, None, None]
        discriminator_step(D_objective, G, D_optimizer, points, z_D[i], alpha=alpha)
        if variant.train.generator_updates(step):
            generator_step(G_objective, D, G_optimizer, points, z_G[i])
        half_life = EMA_STEPS * size
        ema.update(
            averaged, latest, batch_size=size, half_life=half_life, images_seen=(step + 1) * size
        )
    seconds = time.perf_counter() - started
    return {
        "key": run.key(),
        "variant": variant.name,
        "mixture": run.mixture,
        "rng_seed": seed,
        "nets": run.nets,
        "iterations": run.iterations,
        "per_s": run.iterations / seconds,
        "G": scores(mixture, G),
        "G_ema": scores(mixture, G_ema),
        "points": points_of(G).round(4).tolist() if seed == 0 else None,
    }


def block_of(draws: torch.Tensor, size: int) -> torch.Tensor:
    """Reshape (BLOCK * size, d) to (BLOCK, size, d), one row per step."""
    return draws.unflatten(0, (BLOCK, size))


def noise(latent: LatentConfig, size: int, seed: int, stream: str, block: int) -> torch.Tensor:
    """Draw the latents of a block of steps, float32 (BLOCK, size, latent.size)."""
    count = BLOCK * size
    z = latents.sample(latent, count, rng_seed=seed, stream=stream, step=block, device=CPU)
    return block_of(z, size)


@torch.no_grad()
def points_of(G: nn.Module) -> np.ndarray:
    """Return the points to score, float32 (SAMPLES, 2), at the same latents for every run."""
    z = latents.sample(LATENT, SAMPLES, rng_seed=0, stream="mixtures", step=0, device=CPU)
    return G(z).flatten(1).numpy()


def scores(mixture: Mixture, G: nn.Module) -> dict[str, Any] | None:
    """Return the fields of ``MixtureScores``; None if G diverged."""
    points = points_of(G)
    return asdict(mixture.score(points)) if np.isfinite(points).all() else None


def table(
    chosen: Sequence[Variant], mixtures: Sequence[str], scored: dict[Run, Scored], weights: str
) -> str:
    """Return a Markdown table of means over seeds with the half width of their 95 % t-interval."""
    heads = [f"{name}: modes | HQ % | rKL" for name in mixtures]
    lines = [f"| {weights} | {' | '.join(heads)} | steps/s |"]
    lines.append("|---|" + "---|" * (3 * len(mixtures) + 1))
    for name, points in (("the mixture itself", own), ("a cloud of its spread", cloud)):
        row = [cells([asdict(MIXTURES[m].score(points(MIXTURES[m])))]) for m in mixtures]
        lines.append(f"| {name} | {' | '.join(row)} | |")
    if weights == "G" and len(mixtures) == len(MIXTURES):
        lines += [f"| {' | '.join(f'*{x}*' if x else '' for x in row)} | |" for row in PAPERS]
    for variant in chosen:
        row, paces = [], []
        for name in mixtures:
            lines_of_cell = [
                line
                for run, line in scored.items()
                if (run.variant, run.mixture) == (variant, name)
            ]
            row.append(cells([line[weights] for line in lines_of_cell]))
            paces += [line["per_s"] for line in lines_of_cell]
        lines.append(f"| {variant.name} | {' | '.join(row)} | {np.median(paces):,.0f} |")
    return "\n".join(lines)


def own(mixture: Mixture) -> np.ndarray:
    """Return points of an ideal generator."""
    return mixture.sample(SAMPLES, rng_seed=0)


def cloud(mixture: Mixture) -> np.ndarray:
    """Return normal points with the mixture's mean and variance, like a generator without modes.

    Many modes count as captured, so their number means little without the quality.
    """
    spread = np.array(mixture.centers).std(0)
    return np.random.default_rng(0).standard_normal((SAMPLES, 2)) * spread


def cells(scored: Sequence[dict[str, Any] | None]) -> str:
    """Return modes, high quality and reverse KL of one variant on one mixture."""
    finite = [s for s in scored if s]
    if not finite:
        return "diverged | |"
    text = " | ".join(
        (
            mean([s["modes"] for s in finite], 1),
            mean([100 * s["high_quality"] for s in finite], 1),
            mean([s["reverse_kl"] for s in finite], 2),
        )
    )
    lost = len(scored) - len(finite)
    return f"{lost} diverged, else {text}" if lost else text


def notes(mixtures: Sequence[str], iterations: int, seeds: int, nets: Nets) -> str:
    """Explain the figures."""
    ideal = "; ".join(
        f"{name} {ideal_kl(SAMPLES, np.ones(len(MIXTURES[name].centers)))[0]:.4f}"
        for name in mixtures
    )
    optimizer = nets.optimizer
    return (
        f"{SAMPLES:,} points. Modes: modes with a point within 3 sigma. HQ: share of points within"
        f" 3 sigma of a center, {HIGH_QUALITY:.1%} for the mixture itself. rKL: KL of the modes'"
        " shares to uniform in nats, each point counted for its nearest center; an ideal sampler"
        f" has {ideal}.\nOurs: {iterations:,} steps of D, {seeds} seeds, mean ± half width of the"
        f" 95 % t-interval; {nets.name} nets, {optimizer.name} {optimizer.lr_G:g}, betas"
        f" {optimizer.beta1:g} and {optimizer.beta2:g}, {nets.batch_size} logits per"
        " batch. Published rows as printed, PacGAN's after 400,000 steps of larger nets."
    )


def draw(
    chosen: Sequence[Variant], mixtures: Sequence[str], scored: dict[Run, Scored], path: Path
) -> None:
    """Draw one panel per variant and mixture for the first seed: high quality blue, others red."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(6, len(chosen) + 1)
    rows_each = -(-(len(chosen) + 1) // columns)
    figure, axes = plt.subplots(
        rows_each * len(mixtures), columns, squeeze=False, dpi=100,
        figsize=(2.1 * columns, 2.5 * rows_each * len(mixtures)), layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    first = {(run.variant, run.mixture): line for run, line in scored.items() if run.rng_seed == 0}
    for m, name in enumerate(mixtures):
        mixture = MIXTURES[name]
        panels = [("the mixture", own(mixture), mixture.score(own(mixture)))]
        for variant in chosen:
            line = first[variant, name]
            result = MixtureScores(**line["G"]) if line["G"] else None
            panels.append((variant.name, np.array(line["points"]), result))
        for i, (title, points, result) in enumerate(panels):
            axis = axes[m * rows_each + i // columns, i % columns]
            panel(axis, mixture, points)
            text = f"{result.modes} modes, {result.high_quality:.0%}" if result else "diverged"
            axis.set_title(f"{title}\n{text}", fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def panel(axis: Any, mixture: Mixture, points: np.ndarray) -> None:
    """Draw one scatter plot; all panels of a mixture have the same scale."""
    limit = 1.3 * np.abs(mixture.centers).max()
    axis.axis("on")
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    if not np.isfinite(points).all():
        return
    _, near = mixture.nearest(points)
    for which, color in ((~near, "#c23b22"), (near, "#1f4e9c")):
        axis.scatter(*points[which].T, s=1.5, c=color, alpha=0.5, linewidths=0)


if __name__ == "__main__":
    main()
