"""Use of evaluation scores in training: journal, collapse warning and best checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ganray.evaluation.diagnosis import WATCHED, collapse_warning, half_life
from ganray.training import journal
from ganray.training.checkpoints import write_checkpoint
from ganray.training.state import TrainState

BEST_FOLDER = "best_coverage"
"""Subfolder of the run folder for the checkpoint with the highest coverage."""
_SCORE_FILE = "score.json"


def record_scores(
    state: TrainState, log: journal.Journal, scores: Mapping[str, float]
) -> dict[str, float]:
    """Write the scores of an evaluation to the journal and keep the best checkpoint. Rank 0 only.

    Returns:
        The journal's values, named `collapse/NAME`.
    """
    folder, images_seen = state.config.run_folder(), state.images_seen
    curves = {}
    for name in WATCHED:
        images, values = journal.history(folder, f"collapse/{name}")
        earlier = images < images_seen  # a resumed run repeats evaluations since its checkpoint
        curves[name] = (
            [*images[earlier], images_seen],
            [*values[earlier], scores[name]],
        )
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
    recall_half_life = half_life(*curves["recall"])
    if recall_half_life is not None:
        values["collapse/half_life_kimg"] = recall_half_life / 1000
    log.collapse(images_seen, values, warning)
    return values


def keep_best(state: TrainState, folder: Path, coverage: float) -> None:
    """Save the state atomically as the best checkpoint if its coverage is the highest so far."""
    if coverage <= best_coverage(folder):
        return
    score = {"coverage": coverage, "images_seen": state.images_seen}
    write_checkpoint(state, folder / BEST_FOLDER, {_SCORE_FILE: json.dumps(score)})


def best_coverage(folder: Path) -> float:
    """Return the coverage of the best checkpoint in a run folder; 0 if there is none intact."""
    try:
        return float(json.loads((folder / BEST_FOLDER / _SCORE_FILE).read_text())["coverage"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0
