"""Who judges a run: the extractor that its samples, and as many reals, are looked at through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ganray.config import Config
from ganray.data.augment import augment
from ganray.data.loader import Images
from ganray.metrics.extractors import ByClass, Extractor
from ganray.metrics.features import load_classifier, reference_classifier
from ganray.metrics.suite import FEWEST

# Which reals are compared with does not depend on a run's own seed: runs that are compared with
# each other must be compared with the same images.
_SEED = 0
_LEARNED = 60_000
_LEARNED_BYTES = 2**30
"""Of the classifier's training images, at most."""
_HELD_OUT = 10
"""One image in so many says how good the classifier is."""


def prepare_judge(config: Config, images: Images, digest: str, device: torch.device) -> str:
    """Train the classifier that this data needs, if it was not yet.

    Args:
        config: of the run.
        images: those it trains on.
        digest: stands for them.
        device: where to train.

    Returns:
        Its file in the home; '' where images have no labels, or nothing is to be evaluated.
    """
    evaluation = config.evaluation
    if not (evaluation.samples or evaluation.report_samples) or not images.class_names:
        return ""
    height, width, channels = images.image_shape
    count = min(len(images), _LEARNED, _LEARNED_BYTES // (height * width * channels))
    ids = _shuffled_ids(images)[:count]
    ids = ids[images.rows(ids).labels >= 0]
    pixels, labels = _read(config, images, ids), images.rows(ids).labels
    held = max(1, count // _HELD_OUT)
    cache = config.home / "classifiers"
    classifier = reference_classifier(
        pixels[held:],
        labels[held:],
        pixels[:held],
        labels[:held],
        data_digest=f"{digest}/{config.data.crop}/{count}",
        cache=cache,
        device=device,
    )
    return str(cache / f"{classifier.hash}.pt")


def open_extractor(judge: str, images: Images, device: torch.device) -> Extractor:
    """The extractor of these images, in the process that uses it.

    Args:
        judge: what `prepare_judge` returned.
        images: those the run trains on.
        device: where to look.
    """
    assert judge, "images without labels"
    return ByClass(load_classifier(Path(judge), device), images.class_names)


def reals(config: Config, images: Images, samples: int, part: int = 0) -> torch.Tensor:
    """Real images as the networks see them, the same ones for every run on this data.

    Args:
        config: of the run.
        images: those it trains on.
        samples: how many.
        part: 0, or 1 for as many others.

    Returns:
        uint8 (n, H, W, C), n being `samples`, or fewer where images are few.
    """
    ids = _shuffled_ids(images)[part * samples : (part + 1) * samples]
    return _read(config, images, ids)


def comparable(images: Images, samples: int, parts: int = 1) -> int:
    """How many reals there are to compare with, at most `samples`; 0 where they are too few."""
    found = min(samples, len(images) // parts)
    return found if found >= FEWEST else 0


def _shuffled_ids(images: Images) -> np.ndarray:
    return np.random.default_rng(_SEED).permutation(len(images))


def _read(config: Config, images: Images, ids: np.ndarray) -> torch.Tensor:
    """Cropped and mirrored as for training: uint8 (n, H, W, C) on the CPU."""
    pixels = torch.empty((len(ids), *images.image_shape), dtype=torch.uint8)
    images.gather(ids, pixels)
    return augment(
        pixels,
        crop=config.data.crop,
        flip=config.data.flip,
        rng_seed=_SEED,
        step=0,
        batch_size=len(ids),
        mine=slice(0, len(ids)),
    )
