"""Evaluation during training: how much of the data the generator covers, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from ganray.config.schema import EvaluationConfig
from ganray.data.sampler import rank_slice
from ganray.distributed import all_gather_rows, broadcast_from_rank0, rank, world_size
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.extractors import Features
from ganray.evaluation.held_out import MemorizationTest
from ganray.evaluation.reference import ReferenceSet, resize_samples
from ganray.evaluation.suite import MIN_IMAGES, measure
from ganray.figures import MAX_BARS, mode_chart
from ganray.metrics.modes import Counts

_MAX_PAIRS = 10_000_000
"""Maximum number of distances between samples and real images that measure memorization."""

Generate = Callable[[slice], torch.Tensor]
"""Returns the samples at a slice, such as of the fixed evaluation latents, uint8 (n, H, W, C)."""


class Evaluator:
    """Compares samples with the reference images, at the same latents every time.

    Each rank generates its slice of the samples and extracts their features, which are gathered;
    rank 0 computes the metrics while the other ranks train on. Evaluation never changes the state
    of training.

    Args:
        evaluation: Number of samples and the share of the training time that may be spent.
        reference: Images to compare with.
        device: Where features are extracted.
    """

    def __init__(
        self, evaluation: EvaluationConfig, reference: ReferenceSet, device: torch.device
    ) -> None:
        self._max_share, self._device, self._shape = evaluation.max_share, device, reference.shape
        self.samples = reference.usable_count(evaluation.samples)
        """Number of samples of one evaluation; 0 if there are too few reference images."""
        if not self.samples:
            return
        self._extractor = reference.extractor(device)
        self._memorization: MemorizationTest | None = None
        start = time.perf_counter()
        if rank() == 0:
            images = self._extractor.extract(reference.read(self.samples))
            self._reference = ImageStatistics.of(self._extractor, images)
            if reference.held_out:
                self._memorization = MemorizationTest(reference.held_out)
        # An estimate for the first evaluation, which extracts features of as many images.
        self._last_s = time.perf_counter() - start
        self._spent_s, self._started = 0.0, time.perf_counter()
        self._counts: Counts | None = None

    def mode_chart(self) -> np.ndarray | None:
        """Draw the modes of the last evaluation's samples, uint8 (h, w, 3); None without modes.

        On rank 0, after an evaluation.
        """
        if self._counts is None or len(self._counts) > MAX_BARS:
            return None
        return mode_chart(self._reference.mode_names, self._reference.counts, self._counts)

    def __call__(self, generate: Generate, *, final: bool) -> dict[str, float] | None:
        """Evaluate the generator unless that would exceed the share of time that may be spent.

        Collective: every rank calls it after the same steps.

        Args:
            generate: Makes the samples of a slice of ``range(self.samples)``.
            final: Whether this is the last evaluation of the run, which is never skipped.

        Returns:
            On rank 0 the metrics by name, and `speed/evaluation_share`; None on other ranks and
            if the evaluation was skipped.
        """
        if not self.samples or not (final or self._is_affordable()):
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # otherwise earlier training steps are counted
        start = time.perf_counter()
        features = self._extract(generate)
        scores = None
        if rank() == 0:
            samples = ImageStatistics.of(self._extractor, features)
            scores = measure(self._reference, samples, quick=True)
            if self._memorization:
                neighbors = self._memorization(features.pixels, _MAX_PAIRS)
                if len(neighbors.distances) >= MIN_IMAGES:
                    radius = self._memorization.control.radius()
                    scores |= neighbors.memorized(radius).named("memorization")
            self._counts = samples.counts if samples.has_modes else None
        self._last_s = time.perf_counter() - start
        self._spent_s += self._last_s
        if scores is not None:
            share = self._spent_s / (time.perf_counter() - self._started)
            scores["speed/evaluation_share"] = share
        return scores

    def _is_affordable(self) -> bool:
        """Return whether another evaluation fits into the share of time; rank 0 decides for all."""
        spent, elapsed = self._spent_s + self._last_s, time.perf_counter() - self._started
        return broadcast_from_rank0(spent <= self._max_share * elapsed or self._max_share == 1)

    def _extract(self, generate: Generate) -> Features:
        """Return the features of all samples, gathered from all ranks."""
        slices = [rank_slice(self.samples, r, world_size()) for r in range(world_size())]
        counts = [part.stop - part.start for part in slices]
        features = self._extractor.extract(resize_samples(generate(slices[rank()]), self._shape))
        return features.map(lambda part: all_gather_rows(part, counts))
