"""Time that a checkpoint of the `mlp` preset (47 million weights, 560 MB) takes from training.

    python -m tests.benchmarks.checkpoints [FOLDER]

A checkpoint begins before a step; the delay is what that step and those during the writing take
longer than the median of undisturbed steps. Below stand a checkpoint that training waits for, as
`torch.save` and fsync write it, and the copy alone, which no consistent checkpoint can do without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ganray.config.presets import CELEBA
from ganray.gan.step import discriminator_step, generator_step
from ganray.training.checkpoints import CheckpointWriter
from ganray.training.context import LocalContext
from ganray.training.state import TrainState

BATCH, REPEATS, SHAPE = 64, 8, (218, 178, 3)


def main() -> None:
    """Print the table, in ms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="on the disk to measure")
    torch.set_num_threads(1)  # as in a worker with one core
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        config = replace(CELEBA["mlp"], name="stall", home=Path(folder))
        state = TrainState(config, SHAPE, torch.device("cpu"))
        step = make_step(state)
        seconds(step)
        undisturbed = statistics.median(seconds(step) for _ in range(REPEATS))
        writer = CheckpointWriter(state, LocalContext(config))
        writer.reserve()
        while not writer._written.done():
            step()
        saves, firsts, delays, writes = [], [], [], []
        for _ in range(REPEATS):
            state.step += 1
            start = time.perf_counter()
            saves.append(seconds(lambda: writer.save(latest=True)))
            steps = [seconds(step)]
            while not writer._written.done():
                steps.append(seconds(step))
            writes.append(time.perf_counter() - start)
            firsts.append(saves[-1] + steps[0] - undisturbed)
            delays.append(saves[-1] + sum(steps) - len(steps) * undisturbed)
        writer.close()
        waiting = [seconds(lambda: write(state, Path(folder) / "file")) for _ in range(REPEATS)]
        copies = {p: torch.empty_like(p) for p in tensors(state.content())}
        copying = [seconds(lambda: [c.copy_(p) for p, c in copies.items()]) for _ in range(REPEATS)]
    print("| ms | median | worst |\n|---|---|---|")
    print(f"| a step of {BATCH} images | {1000 * undisturbed:.0f} | |")
    for name, times in (
        ("delay of the step with the checkpoint", firsts),
        ("the call itself", saves),
        ("delay of all steps until it is on the disk", delays),
        ("time until it is on the disk", writes),
        ("*a checkpoint that training waits for*", waiting),
        ("*copy of the state alone*", copying),
    ):
        print(f"| {name} | {1000 * statistics.median(times):.1f} | {1000 * max(times):.1f} |")


def make_step(state: TrainState) -> Callable[[], None]:
    """Return a function that updates D and G once with random images."""
    height, width, channels = SHAPE
    real = torch.rand(BATCH, channels, height, width)

    def step() -> None:
        z = torch.rand(BATCH, state.config.latent.size)
        discriminator_step(state.D_objective, state.G, state.D_optimizer, real, z)
        generator_step(state.G_objective, state.D, state.G_optimizer, real, z)

    return step


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write(state: TrainState, path: Path) -> None:
    """Write a state as a plain loop would."""
    with path.open("wb") as file:
        torch.save(state.content(), file)
        os.fsync(file.fileno())


def tensors(value: object) -> list[torch.Tensor]:
    """Return all tensors in a nested value."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return (
        [t for v in items for t in tensors(v)]
        if isinstance(items, list | type({}.values()))
        else []
    )


if __name__ == "__main__":
    main()
