"""Measure ganray on a GPU: step, kernels, tests, parity, whole jobs, data; estimate DDP.

    python -m tests.benchmarks.gpu [--out FOLDER] [--seconds 8] [--rows steps parity]

Rows are printed, and appended to FOLDER/gpu.jsonl, as soon as they are measured, the most important
first. Ratios hold within one run. Without a GPU everything runs on the CPU, with small networks, so
that a test keeps this alive; those figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ganray.config.presets import CELEBA, MNIST
from ganray.config.schema import Config, DataConfig
from ganray.data.format import Shape
from ganray.data.writer import write_shards
from ganray.distributed import bucket_mib
from ganray.evaluation.reference import NO_ASSETS
from ganray.gan import latents
from ganray.training import journal
from ganray.training.context import LocalContext
from ganray.training.launch import choose_kernels, launch
from ganray.training.state import TrainState, read_state
from ganray.training.updates import Batch, Updates
from tests.conftest import Squares

ROOT = Path(__file__).parents[2]
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A preset with the shape of its images."""

    name: str
    config: Config
    shape: Shape
    layout: torch.memory_format = torch.preserve_format
    """Memory format of the networks; by default the one that ganray chooses."""
    is_compiled: bool = False
    """Whether torch compiles the networks, which cannot have penalties then."""

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.config.train.batch_size

    @property
    def warm_up(self) -> int:
        """Steps until all kinds of steps have been captured."""
        return 10 + 3 * self.config.loss.penalty_every


def cases() -> list[Case]:
    """Return the presets to measure; on the CPU, small ones."""
    dcgan, cpu32 = CELEBA["dcgan64"], CELEBA["cpu32"]
    r3 = CELEBA["r3-64"]
    if not HAS_GPU:
        small = replace(r3.network, width_G=8, width_D=8, max_width=16)
        r3 = replace(r3, network=small, train=replace(r3.train, batch_size=8))
        return [
            Case("cpu32", cpu32, (32, 32, 3)),
            Case("mnist", MNIST["normal-100"], (28, 28, 1)),
            Case("r3", r3, (16, 16, 3)),
        ]

    def groups(width: int) -> Config:
        return replace(r3, network=replace(r3.network, group_width=width))

    large = replace(dcgan, train=replace(dcgan.train, batch_size=256))
    bf16 = replace(dcgan, train=replace(dcgan.train, precision="bf16"))
    lazy = replace(dcgan, loss=replace(dcgan.loss, penalty_every=16))
    full = replace(dcgan, train=replace(dcgan.train, matmul_precision="highest"))
    exact = replace(dcgan, train=replace(dcgan.train, deterministic=True))
    plain = replace(dcgan, loss=replace(dcgan.loss, r1_gamma=0.0))
    return [
        Case("dcgan64", dcgan, (64, 64, 3)),
        Case("r3-64", r3, (64, 64, 3)),
        Case("r3-64 channels_last", r3, (64, 64, 3), torch.channels_last),
        Case("r3-64 groups of 32", groups(32), (64, 64, 3)),
        Case("r3-64 groups of 64", groups(64), (64, 64, 3)),
        Case("r3-64 one group", groups(0), (64, 64, 3)),
        Case("dcgan64 lazy", lazy, (64, 64, 3)),
        Case("dcgan64 channels_last", dcgan, (64, 64, 3), torch.channels_last),
        Case("dcgan64 bf16", bf16, (64, 64, 3)),
        Case("dcgan64 without TF32", full, (64, 64, 3)),
        Case("dcgan64 deterministic", exact, (64, 64, 3)),
        Case("dcgan64 batch 256", large, (64, 64, 3)),
        Case("normal-100", MNIST["normal-100"], (28, 28, 1)),
        Case("cpu32", cpu32, (32, 32, 3)),
        Case("mlp", CELEBA["mlp"], (218, 178, 3)),
        Case("dcgan64 without penalty", plain, (64, 64, 3)),
        Case("dcgan64 without penalty, compiled", plain, (64, 64, 3), is_compiled=True),
    ]


def main() -> None:
    """Measure all rows; one that fails is printed and does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=8, help="time of each measurement")
    kinds = {measure.__name__: measure for measure in KINDS}
    parser.add_argument("--rows", nargs="+", choices=kinds, default=list(kinds))
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if HAS_GPU else "CPU"
    print(f"torch {torch.__version__}, {device}", flush=True)
    with tempfile.TemporaryDirectory() as home, (options.out / "gpu.jsonl").open("a") as file:
        for kind in options.rows:
            try:
                for row in kinds[kind](Path(home), options.seconds):
                    row = {"device": device, "kind": kind} | row
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print("  ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)
            except Exception:
                print(f"{kind} failed:\n{traceback.format_exc()}", flush=True)


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def steps(_: Path, seconds: float) -> Iterator[Row]:
    """Compare ganray's two updates with the leanest loop and that of PyTorch's DCGAN example."""
    for case in cases():
        torch.manual_seed(0)
        if HAS_GPU:
            choose_kernels(case.config.train)
        loops = {
            "ganray": ganray_step(case),
            "eager": ganray_step(case, cuda_graphs=False),
            "lean": lean_step(case),
            "example": example_step(case),
        }
        row: Row = {"case": case.name, "batch": case.batch}
        for name, step in loops.items():
            timing = time_steps(step, seconds / len(loops), case.warm_up)
            row |= {
                f"{name}_images_per_s": case.batch / timing.total,
                f"{name}_ms": timing.total * 1e3,
            }
            row[f"{name}_host_ms"] = timing.host * 1e3
        every = case.config.loss.penalty_every
        with FlopCounter() as flops:
            for _ in range(every):
                loops["lean"]()
        row["tflops"] = flops.total / every / row["ganray_ms"] / 1e9
        row["kernels"] = count_kernels(loops["ganray"])
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else 0.0
        yield row


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations; FlopCounterMode of torch 2.11 cannot if there is an R1."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its count."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **kwargs, out_val=result)
        return result


@dataclass(frozen=True)
class Timing:
    """Seconds per step."""

    total: float
    host: float
    """Until the host has submitted the step."""


def time_steps(step: Callable[[], object], seconds: float, warm_up: int) -> Timing:
    """Return the time of a step after some for warming up."""
    for _ in range(warm_up):
        step()
    synchronize()
    start, host, count = time.perf_counter(), 0.0, 0
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        step()
        host += time.perf_counter() - begin
        count += 1
        if count % 20 == 0:
            synchronize()  # otherwise the host waits within a step for the queue
    synchronize()
    return Timing((time.perf_counter() - start) / count, host / count)


def synchronize() -> None:
    """Wait for the device."""
    if HAS_GPU:
        torch.cuda.synchronize()


def count_kernels(step: Callable[[], object]) -> int:
    """Return the number of kernels that a step starts; on the CPU, of operators."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if HAS_GPU else activity.CPU]) as profile:
        step()
        synchronize()
    return sum(event.count for event in profile.key_averages())


def ganray_step(case: Case, cuda_graphs: bool = True) -> Callable[[], object]:
    """Return ganray's updates of D, G and G_ema, with the latents drawn as in training."""
    train = replace(case.config.train, cuda_graphs=cuda_graphs)
    case = replace(case, config=replace(case.config, train=train))
    state = build_state(case)
    update, loss = Updates(state, 1.0, lambda: None), case.config.loss
    real = torch.randint(0, 256, (case.batch, *case.shape), dtype=torch.uint8, device=DEVICE)

    def draw(stream: str) -> torch.Tensor:
        return latents.sample(
            case.config.latent,
            case.batch,
            rng_seed=0,
            stream=stream,
            step=state.step,
            device=DEVICE,
        )

    def step() -> None:
        scale = loss.penalty_scale(state.step)
        with torch.autograd.set_multithreading_enabled(False):  # as in training
            update(Batch(real, [], draw("D"), [draw("G")], None, scale))
        state.advance()

    return step


def build_state(case: Case) -> TrainState:
    """Return the networks and optimizers of a case in its memory format."""
    state = TrainState(case.config, case.shape, DEVICE)
    for network in (state.G, state.D):
        network.to(memory_format=case.layout)  # pyright: ignore[reportCallIssue]
        if case.is_compiled:
            network.compile()
    return state


def lean_step(case: Case) -> Callable[[], object]:
    """Return the same updates with nothing but torch calls: no statistics, no averaging."""
    state = build_state(case)
    real, z = random_images(case), torch.randn(case.batch, case.config.latent.size, device=DEVICE)
    amp = torch.autocast(DEVICE.type, torch.bfloat16, case.config.train.precision == "bf16")
    loss_config, softplus, steps = case.config.loss, nn.functional.softplus, itertools.count()
    is_relativistic = loss_config.name == "relativistic"

    def penalty(gamma: float, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gamma / 2 * slope.square().sum([1, 2, 3]).mean()

    def step() -> None:
        scale = loss_config.penalty_scale(next(steps))
        r1, r2 = loss_config.r1_gamma * scale, loss_config.r2_gamma * scale
        images = real.detach().requires_grad_(r1 > 0)
        with amp, torch.no_grad():
            fake = state.G(z)
        fake.requires_grad_(r2 > 0)
        with amp:
            real_logits, fake_logits = state.D(images), state.D(fake)
        if is_relativistic:
            loss = softplus(fake_logits - real_logits).mean()
        else:
            loss = (softplus(-real_logits) + softplus(fake_logits)).mean()
        if r1:
            loss = loss + penalty(r1, images, real_logits)
        if r2:
            loss = loss + penalty(r2, fake, fake_logits)
        state.D_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.D_optimizer.step()
        state.D.requires_grad_(False)
        with amp:
            fake_logits = state.D(state.G(z))
            loss = softplus(state.D(real) - fake_logits if is_relativistic else -fake_logits).mean()
        state.G_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.G_optimizer.step()
        state.D.requires_grad_(True)

    return step


def example_step(case: Case) -> Callable[[], object]:
    """Return the updates of PyTorch's DCGAN example: no penalty, `.item()` in every step."""
    loss_config = dataclasses.replace(case.config.loss, r1_gamma=0.0, r2_gamma=0.0)
    state = build_state(replace(case, config=replace(case.config, loss=loss_config)))
    real, loss = random_images(case), nn.BCEWithLogitsLoss()

    def step() -> None:
        state.D.zero_grad()
        logits = state.D(real)
        error = loss(logits, torch.ones_like(logits))
        error.backward()
        fake = state.G(torch.randn(case.batch, case.config.latent.size, device=DEVICE))
        logits_fake = state.D(fake.detach())
        error_fake = loss(logits_fake, torch.zeros_like(logits_fake))
        error_fake.backward()
        _ = logits.mean().item(), logits_fake.mean().item()
        state.D_optimizer.step()
        state.G.zero_grad()
        logits = state.D(fake)
        error_G = loss(logits, torch.ones_like(logits))
        error_G.backward()
        _ = logits.mean().item()
        state.G_optimizer.step()
        _ = error.item(), error_fake.item(), error_G.item()

    return step


def random_images(case: Case) -> torch.Tensor:
    """Return a batch of images, float32 (n, C, H, W) in the range of the network."""
    height, width, channels = case.shape
    images = torch.rand(case.batch, channels, height, width, device=DEVICE)
    return images * (1 - case.config.pixel_min()) + case.config.pixel_min()


@dataclass(frozen=True)
class Link:
    """The slowest link of a ring of workers: assumed, not measured."""

    name: str
    gpus: int
    latency_us: float
    """Of one message between neighbors, on average: 3 within a node, 25 between nodes."""
    gigabytes_per_s: float
    """80 % of what the hardware promises."""


LINKS = (
    Link("1 node of 8 GPUs, NVLink", 8, 3, 360),
    *(Link(f"4 nodes of 8 GPUs, {gbit} Gb/s", 32, 6, 0.8 * gbit / 8) for gbit in (100, 25, 10)),
)


def kernels(_: Path, seconds: float) -> Iterator[Row]:
    """List the kernels of an eager step that take the most time; on the CPU, the operators."""
    case = cases()[0]
    step, on_device = ganray_step(case, cuda_graphs=False), "device" if HAS_GPU else "cpu"
    for _ in range(case.warm_up):
        step()
    synchronize()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if HAS_GPU else activity.CPU]) as profile:
        for _ in range(5):
            step()
        synchronize()
    times = {e: getattr(e, f"self_{on_device}_time_total") for e in profile.key_averages()}
    for event in sorted(times, key=lambda event: -times[event])[:20]:
        yield {
            "case": case.name,
            "share": times[event] / sum(times.values()),
            "us_per_step": times[event] / 5,
            "calls_per_step": event.count / 5,
            "kernel": event.key[:120],
        }


def scaling(_: Path, seconds: float) -> Iterator[Row]:
    """Estimate DDP's efficiency at a fixed batch per worker, from the eager step of one worker."""
    case = cases()[0]
    step_s = time_steps(ganray_step(case, cuda_graphs=False), seconds, case.warm_up).total
    state = build_state(case)
    for precision, scale in (("fp32", 1.0), ("bf16", 0.5)):
        for link in LINKS:
            total, exposed = exposed_seconds(link, (state.D, state.G), step_s, scale)
            yield {
                "case": case.name,
                "link": link.name,
                "gradients": precision,
                "step_ms": step_s * 1e3,
                "reduce_ms": total * 1e3,
                "estimated_efficiency": step_s / (step_s + exposed),
            }


def exposed_seconds(
    link: Link, networks: Iterable[nn.Module], step_s: float, scale: float = 1.0
) -> tuple[float, float]:
    """Return the time in which a ring reduces the gradients, and how much of it a step waits for.

    A ring of n workers reduces B bytes in 2 (n - 1) latencies and the time of 2 (n - 1) / n * B
    bytes, per bucket. It may hide behind the backward pass, which is taken as half of the step, but
    for the last bucket. `scale` is the size of gradients relative to fp32.
    """
    total = last = 0.0
    for network in networks:
        size = sum(p.nbytes for p in network.parameters())
        bucket = min(size, bucket_mib(network) * 2**20)
        seconds = ring_seconds(link, bucket * scale)
        total += seconds * size / bucket
        last += seconds
    return total, max(last, total - step_s / 2)


def ring_seconds(link: Link, size: float) -> float:
    """Return the time in which a ring of workers reduces `size` bytes."""
    hops, gpus = 2 * (link.gpus - 1), link.gpus
    return hops * link.latency_us / 1e6 + hops / gpus * size / (link.gigabytes_per_s * 1e9)


def loops(home: Path, seconds: float) -> Iterator[Row]:
    """Compare streamed images with images that are on the device: the whole training loop."""
    shards = home / "shards"
    write_shards(Squares(2048), shards, size=64 if HAS_GPU else 32)
    base = CELEBA["dcgan64" if HAS_GPU else "cpu32"]
    for residence in ("stream", "device"):
        data = DataConfig(size=64 if HAS_GPU else 32, residence=residence)  # pyright: ignore
        config = quiet(replace(base, data=data, name=f"loop-{residence}", home=home), kimg=4)
        start = time.perf_counter()
        launch(config, str(shards))
        elapsed = time.perf_counter() - start
        longer = quiet(config, kimg=4 + max(4, 4 * seconds / elapsed))
        launch(longer, str(shards), NO_ASSETS)
        _, rates = journal.history(longer.run_folder(), "speed/images_per_s")
        yield {"residence": residence, "images_per_s": float(rates[-1])}


def quiet(config: Config, kimg: float) -> Config:
    """Return the config without evaluation, grids and checkpoints until its end."""
    rare = {"sample_every": 1e6, "checkpoint_every": 1e6, "log_every": 2}
    evaluation = replace(config.evaluation, samples=0, report_samples=0)
    return replace(config, evaluation=evaluation, train=replace(config.train, kimg=kimg, **rare))


def parity(home: Path, _: float) -> Iterator[Row]:
    """Compare 200 steps, on the CPU 40, with themselves, with a resumed run, and with the CPU."""
    shards = home / "parity"
    write_shards(Squares(512), shards, size=32)
    kimg = (200 if HAS_GPU else 40) * CELEBA["cpu32"].train.batch_size / 1000

    def run(name: str, *lengths: float, **options: Any) -> Config:
        for length in lengths:
            config = parity_config(home, name, length, **options)
            launch(config, str(shards))
        return config

    for deterministic in (False, True):
        first, again, resumed = (
            read_state(LocalContext(config).checkpoint())
            for config in (
                run(f"first-{deterministic}", kimg, deterministic=deterministic),
                run(f"again-{deterministic}", kimg, deterministic=deterministic),
                run(f"resumed-{deterministic}", kimg / 2, kimg, deterministic=deterministic),
            )
        )
        yield {
            "deterministic": deterministic,
            "twice_bit_for_bit": same(first, again),
            "resumed_bit_for_bit": same(first, resumed),
        }
    if HAS_GPU:
        code = "import tests.benchmarks.gpu as gpu, sys; gpu.print_cpu_losses(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(shards), str(kimg)]
        environment = os_environment({"CUDA_VISIBLE_DEVICES": ""})
        output = subprocess.check_output(command, env=environment, cwd=ROOT, text=True)
        on_cpu = json.loads(output.splitlines()[-1])
        with mock.patch.object(latents, "sample", partial(sample_on_cpu, latents.sample)):
            config = run("as-on-cpu", kimg, matmul_precision="highest")
        losses = journal.history(config.run_folder(), "loss/D")[1].tolist()
        differences = [abs(a - b) for a, b in zip(losses, on_cpu, strict=True)]
        yield {"difference_of_D_loss_from_cpu": " ".join(f"{d:.2g}" for d in differences)}


def parity_config(home: Path, name: str, kimg: float, **options: Any) -> Config:
    """Return the config of a run of `parity` with other options of its training."""
    config = replace(CELEBA["cpu32"], data=DataConfig(size=32), home=home, name=name)
    config = quiet(config, kimg)
    return replace(config, train=replace(config.train, log_every=0.64, **options))


def sample_on_cpu(sample: Callable[..., torch.Tensor], *args: Any, **options: Any) -> torch.Tensor:
    """Return the latents that the CPU's generator draws, on the device."""
    return sample(*args, **options | {"device": torch.device("cpu")}).to(options["device"])


def print_cpu_losses(shards: str, kimg: str) -> None:
    """Print D's losses of the parity run on the CPU; called in a process without a GPU."""
    with tempfile.TemporaryDirectory() as home:
        config = parity_config(Path(home), "cpu", float(kimg))
        launch(config, shards)
        print(json.dumps(journal.history(config.run_folder(), "loss/D")[1].tolist()))


def same(a: Any, b: Any) -> bool:
    """Return whether the weights of two states are equal bit for bit."""
    return all(torch.equal(a[net][key], b[net][key]) for net in ("G", "D") for key in a[net])


def tests(_: Path, __: float) -> Iterator[Row]:
    """Run the tests that check a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["tests/training/test_gpu.py", "tests/data"]  # others need more packages
    environment = os_environment({})
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-6000:], flush=True)
    yield {"exit_code": done.returncode, "result": done.stdout.splitlines()[-1]}


def jobs(home: Path, _: float) -> Iterator[Row]:
    """Run the jobs as users do: Ray Train, a sweep with shared GPUs, a report."""
    faces = ["--data.faces", "2000", "--train.kimg", "20"]
    axes = ["--sweep.axis", "latent.size=2,100", "--sweep.seeds", "2", "--train.kimg", "10"]
    commands = {
        "celeba": ["celeba.py", "cpu32", *faces, "--name", "gpu-job"],
        "evaluate": ["evaluate.py", "gpu-job", "--samples", "1000"],
        "sweep": ["sweep.py", *axes, "--data.source", "digits", "--sweep.trials_per_gpu", "4"],
    }
    for name, (job, *options) in commands.items():
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / job), *options],
            env=os_environment({"GANRAY_HOME": str(home / "home")}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print((done.stdout + done.stderr)[-3000:], flush=True)
        yield {"job": name, "exit_code": done.returncode, "seconds": time.perf_counter() - start}


def os_environment(more: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with changes."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more


KINDS = (steps, kernels, tests, parity, jobs, loops, scaling)

if __name__ == "__main__":
    main()
