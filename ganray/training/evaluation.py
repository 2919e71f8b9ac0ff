"""Evaluation as training goes on: how much of the data G covers, on all ranks, in little time."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import torch

from ganray.config import Config
from ganray.data.order import rank_slice
from ganray.distributed import all_rows, from_leader, rank, world_size
from ganray.metrics.extractors import Seen
from ganray.metrics.suite import Reference, measure
from ganray.metrics.verdict import WATCHED, alarm, half_life
from ganray.training import journal
from ganray.training.judge import ReferenceSet, fitted
from ganray.training.state import TrainState

BEST = "best_diversity"
"""Folder of the checkpoint of highest coverage, in the run folder."""
_SCORE = "score.json"


class Evaluator:
    """Compares samples of G_ema with reals, at the same latents every time.

    Each rank makes and looks at its share; what it saw is gathered, and rank 0 does the sums while
    the others train on. Nothing here changes what is learned.
    """

    def __init__(self, config: Config, reference: ReferenceSet, device: torch.device) -> None:
        """Look at the reals."""
        self._config, self._device, self._shape = config, device, reference.shape
        self._samples = reference.comparable(config.evaluation.samples)
        self.last: dict[str, float] = {}
        """What rank 0 found last, as `collapse/NAME`; empty before, and on other ranks."""
        if not self._samples:
            return
        self._extractor = reference.extractor(device)
        start = time.perf_counter()
        if rank() == 0:  # which alone does the sums
            self._reference = Reference.of(self._extractor, reference.reals(self._samples))
        # As long as an evaluation will take, about: it also looks at as many images.
        self._last_s = time.perf_counter() - start
        self._spent_s, self._started = 0.0, time.perf_counter()

    def evaluate(self, state: TrainState, log: journal.Journal) -> None:
        """Collective: every rank calls it after the same steps."""
        if not self._samples or not self._affordable(state):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # or the steps before would be counted
        start = time.perf_counter()
        seen = self._look(state)
        if rank() == 0:
            self._record(state, log, seen, start)
        self._last_s = time.perf_counter() - start
        self._spent_s += self._last_s

    def _affordable(self, state: TrainState) -> bool:
        """Whether there is time for it now; rank 0 decides for all. The last one always is."""
        if state.step == self._config.train.steps():
            return True
        share = self._config.evaluation.max_share
        spent, passed = self._spent_s + self._last_s, time.perf_counter() - self._started
        return from_leader(spent <= share * passed or share == 1)

    def _look(self, state: TrainState) -> Seen:
        """What all ranks saw of all samples."""
        slices = [rank_slice(self._samples, r, world_size()) for r in range(world_size())]
        counts = [part.stop - part.start for part in slices]
        mine = state.images_of("evaluation", self._samples, slices[rank()])
        seen = self._extractor.look(fitted(mine, self._shape))
        whole = [
            None if part is None else all_rows(part, counts)
            for part in (seen.features, seen.modes, seen.confidences)
        ]
        assert whole[0] is not None
        return Seen(whole[0], whole[1], whole[2])

    def _record(self, state: TrainState, log: journal.Journal, seen: Seen, start: float) -> None:
        """On rank 0: the sums, the alarm, the best checkpoint, and all of it to the journal."""
        found = measure(self._reference, seen, quick=True)
        folder, now = self._config.run_folder(), state.images_seen
        curves = {}
        for name in WATCHED:
            past, values = journal.history(folder, f"collapse/{name}")
            known = past < now  # a run that goes on has written of what it does again
            curves[name] = ([*past[known], now], [*values[known], found[name]])
        saturation = journal.history(folder, "D/saturation")[1][-1:]
        why = alarm(
            {name: values for name, (_, values) in curves.items()},
            float(saturation[0]) if len(saturation) else math.nan,
            state.step / self._config.train.steps(),
        )
        lived = half_life(*curves["recall"])
        keep_best(state, folder, found["coverage"])
        spent = self._spent_s + time.perf_counter() - start
        values = {f"collapse/{name}": float(value) for name, value in found.items()}
        values["collapse/alarm"] = float(bool(why))
        if lived is not None:
            values["collapse/half_life_kimg"] = lived / 1000
        values["time/evaluation_share"] = spent / (time.perf_counter() - self._started)
        log.collapse(now, values, why)
        self.last = values


def keep_best(state: TrainState, folder: Path, coverage: float) -> None:
    """Keep the state as the best so far, if its coverage is; whole or not at all."""
    target, part = folder / BEST, folder / f"{BEST}.part"
    if coverage <= best_coverage(folder):
        return
    shutil.rmtree(part, ignore_errors=True)
    state.save(part)
    score = {"coverage": coverage, "images_seen": state.images_seen}
    (part / _SCORE).write_text(json.dumps(score))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)


def best_coverage(folder: Path) -> float:
    """Of the checkpoint that is kept as the best; 0 if there is none."""
    try:
        return float(json.loads((folder / BEST / _SCORE).read_text())["coverage"])
    except (OSError, ValueError, KeyError):
        return 0.0
