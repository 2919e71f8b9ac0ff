"""What the training loop does with evaluation scores: journal, collapse warning, best checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ganray.evaluation.diagnosis import WATCHED, collapse_warning, half_life
from ganray.training import journal
from ganray.training.state import TrainState

BEST = "best_coverage"
"""Folder of the checkpoint with the highest coverage, in the run folder."""
_SCORE = "score.json"


def record_scores(
    state: TrainState, log: journal.Journal, scores: Mapping[str, float]
) -> dict[str, float]:
    """Write the scores of an evaluation to the journal and keep the best checkpoint. Rank 0 only.

    Returns:
        The journal's values, as `collapse/NAME`.
    """
    folder, now = state.config.run_folder(), state.images_seen
    curves = {}
    for name in WATCHED:
        past, values = journal.history(folder, f"collapse/{name}")
        known = past < now  # a resumed run has already recorded evaluations that it repeats
        curves[name] = ([*past[known], now], [*values[known], scores[name]])
    saturation = journal.history(folder, "D/saturation")[1][-1:]
    warning = collapse_warning(
        {name: values for name, (_, values) in curves.items()},
        float(saturation[0]) if len(saturation) else math.nan,
        state.step / state.config.train.steps(),
    )
    keep_best(state, folder, scores["coverage"])
    values = {
        name if "/" in name else f"collapse/{name}": float(value) for name, value in scores.items()
    }
    values["collapse/warning"] = float(bool(warning))
    lived = half_life(*curves["recall"])
    if lived is not None:
        values["collapse/half_life_kimg"] = lived / 1000
    log.collapse(now, values, warning)
    return values


def keep_best(state: TrainState, folder: Path, coverage: float) -> None:
    """Save the state as the best checkpoint if its coverage is the highest so far, atomically."""
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
    """Coverage of the best checkpoint in a run folder; 0 if there is none."""
    try:
        return float(json.loads((folder / BEST / _SCORE).read_text())["coverage"])
    except (OSError, ValueError, KeyError):
        return 0.0
