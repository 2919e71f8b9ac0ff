"""Record of an evaluation's scores, with a warning if they show a collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ganray.evaluation.diagnosis import WATCHED, collapse_warning, half_life
from ganray.training.journal import Journal
from ganray.training.state import TrainState


def record_scores(state: TrainState, log: Journal, scores: Mapping[str, float]) -> dict[str, float]:
    """Write the scores of an evaluation to the journal. Rank 0 only.

    Returns:
        The journal's values, named `collapse/NAME`.
    """
    images_seen = state.images_seen
    curves = {}
    for name in WATCHED:
        images, values = log.history(f"collapse/{name}")
        earlier = images < images_seen  # a resumed run repeats evaluations since its checkpoint
        curves[name] = (
            [*images[earlier], images_seen],
            [*values[earlier], scores[name]],
        )
    saturation = log.history("discriminator/saturation")[1][-1:]
    warning = collapse_warning(
        {name: values for name, (_, values) in curves.items()},
        float(saturation[0]) if len(saturation) else math.nan,
        state.step / state.config.train.steps(),
    )
    values = {
        name if "/" in name else f"collapse/{name}": float(value) for name, value in scores.items()
    }
    values["collapse/warning"] = float(bool(warning))
    recall_half_life = half_life(*curves["recall"])
    if recall_half_life is not None:
        values["collapse/half_life_kimg"] = recall_half_life / 1000
    log.collapse(images_seen, values, warning)
    return values
