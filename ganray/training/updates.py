"""The updates of one step: D once, then G; on a GPU all their kernels as one CUDA graph.

A step of a small network is hundreds of kernels of some microseconds each. Submitting them one by
one takes the host longer than the GPU takes to run them; a CUDA graph is submitted at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ganray.data.transforms import to_float
from ganray.distributed import Sums, sum_values, world_size
from ganray.errors import UserError
from ganray.gan.step import discriminator_step, generator_step
from ganray.training.state import TrainState

_EAGER_STEPS = 3
"""Steps of each kind before it is captured, in which libraries choose kernels and optimizers
allocate their state."""


@dataclass(frozen=True)
class Batch:
    """Inputs of the updates of one step, besides the state: this rank's part of the batch."""

    images: torch.Tensor
    """Real images, uint8 (n, H, W, C)."""
    labels: list[torch.Tensor]
    """One-hot labels, float32 (n, classes); [] if unconditional."""
    z_D: torch.Tensor
    """Latents of the update of D, float32 (n, latent.size [+ classes])."""
    z_G: list[torch.Tensor]
    """Latents of each update of G; [] in most steps if `train.G_every` is above 1."""
    alpha: torch.Tensor | None
    """Mixing weights of WGAN-GP, float32 (n,) in [0, 1)."""
    penalty_scale: float
    """Factor of R1 and R2."""
    draws_D: torch.Tensor | None = None
    """Random numbers of the augmentation in the update of D, float32 (n, 2 * DRAWS)."""
    draws_G: list[torch.Tensor] = field(default_factory=list)
    """The same for each update of G; [] without augmentation."""

    @property
    def kind(self) -> tuple[int, float]:
        """Number of updates of G and factor of the penalties, on which the kernels depend."""
        return len(self.z_G), self.penalty_scale

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors, in the same order for batches of one kind."""
        optional = [tensor for tensor in (self.alpha, self.draws_D) if tensor is not None]
        return [self.images, *self.labels, self.z_D, *self.z_G, *optional, *self.draws_G]

    def clone(self) -> Batch:
        """Return a copy with memory of its own."""
        return replace(
            self,
            images=self.images.clone(),
            labels=[label.clone() for label in self.labels],
            z_D=self.z_D.clone(),
            z_G=[z.clone() for z in self.z_G],
            alpha=None if self.alpha is None else self.alpha.clone(),
            draws_D=None if self.draws_D is None else self.draws_D.clone(),
            draws_G=[draws.clone() for draws in self.draws_G],
        )


class Updates:
    """Updates D and G of a state, each call with the next batch.

    Args:
        state: State whose networks and optimizers are updated. Its step is not advanced.
        weight: This rank's share of the global batch, times the world size.
        wait_for_copy: Returns when no checkpoint is being copied from the state any more. Called
            before a graph is run; without one the optimizers call it themselves.
    """

    def __init__(self, state: TrainState, weight: float, wait_for_copy: Callable[[], None]) -> None:
        self._state, self._weight, self._wait_for_copy = state, weight, wait_for_copy
        train = state.config.train
        self._autocast = torch.autocast(
            state.device.type, torch.bfloat16, train.precision == "bf16"
        )
        self._has_graphs = uses_cuda_graphs(state)
        self._calls: Counter[tuple[int, float]] = Counter()
        self._graphs: dict[tuple[int, float], CudaGraph] = {}
        self._values = state.values

    def __call__(self, batch: Batch) -> Sums:
        """Return the sums of the step's statistics, valid until the next call.

        Raises:
            UserError: The updates cannot be captured as a CUDA graph.
        """
        self._state.apply_schedules()
        if self._values != self._state.values:  # which graphs contain
            self._graphs.clear()
            self._values = self._state.values
        sums = self._run(batch)
        self._state.adapt_augmentation(sums)
        return sums

    def _run(self, batch: Batch) -> Sums:
        kind = batch.kind
        self._calls[kind] += 1
        if not self._has_graphs or self._calls[kind] <= _EAGER_STEPS:
            return self._update(batch)
        self._wait_for_copy()
        if kind not in self._graphs:
            try:
                self._graphs[kind] = CudaGraph(self._update, batch)
            except RuntimeError as error:
                cause = str(error.__context__ or error).partition("\n")[0]
                raise UserError(
                    f"train.cuda_graphs=true: a step cannot be captured as a CUDA graph ({cause});"
                    " the same command with --train.cuda_graphs false resumes without"
                ) from error
        return self._graphs[kind](batch)

    def _update(self, batch: Batch) -> Sums:
        state = self._state
        real = to_float(batch.images, state.config.pixel_min(), state.layout)
        stats = [
            discriminator_step(
                state.D_objective,
                state.G,
                state.D_optimizer,
                real,
                batch.z_D,
                batch.labels,
                self._weight,
                self._autocast,
                alpha=batch.alpha,
                penalty_scale=batch.penalty_scale,
                draws=batch.draws_D,
                p=state.augment_p,
                microbatch=state.config.train.microbatch,
            )
        ]
        draws_G = batch.draws_G or [None] * len(batch.z_G)
        stats += [
            generator_step(
                state.G_objective,
                state.D,
                state.G_optimizer,
                real,
                z,
                batch.labels,
                self._weight,
                self._autocast,
                draws=draws,
                p=state.augment_p,
                microbatch=state.config.train.microbatch,
            )
            for z, draws in zip(batch.z_G, draws_G, strict=True)
        ]
        return sum_values(stats)


def uses_cuda_graphs(state: TrainState) -> bool:
    """Return whether to capture the updates: not under DDP, whose collectives were not tried."""
    return state.device.type == "cuda" and state.config.train.cuda_graphs and world_size() == 1


class CudaGraph:
    """The kernels of the updates of one kind of batch."""

    def __init__(self, update: Callable[[Batch], Sums], batch: Batch) -> None:
        self._batch, self._graph = batch.clone(), torch.cuda.CUDAGraph()
        # thread_local: the loader's thread meanwhile allocates memory and copies to the device.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._sums = update(self._batch)

    def __call__(self, batch: Batch) -> Sums:
        """Run the kernels on another batch of the kind; the result is valid until the next call."""
        for static, tensor in zip(self._batch.tensors(), batch.tensors(), strict=True):
            static.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._sums
