"""Who judges a run: the extractor that its samples, and as many reals, are looked at through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ganray.config import Config, EvaluationConfig
from ganray.data.augment import augment
from ganray.data.loader import Images
from ganray.metrics.extractors import (
    ByAttributes,
    ByChannel,
    ByClass,
    Extractor,
    Features,
    Joined,
    Pixels,
    split_channels,
    split_labels,
)
from ganray.metrics.features import Unread, load_classifier, reference_classifier
from ganray.metrics.pretrained import DinoV2, Inception
from ganray.metrics.suite import FEWEST

# Which reals are compared with does not depend on a run's own seed: runs that are compared with
# each other must be compared with the same images.
_SEED = 0
_LEARNED = 60_000
_TRIPLES = 20_000
_LEARNED_BYTES = 2**30
"""Of the classifier's training images, at most."""
_HELD_OUT = 10_000
"""Images, or half of a smaller set, that the classifier does not learn: it is surer of those that
it has learned than of any sample, however good. They are what samples are compared with."""
_TESTED = 5_000
"""Of these, those that say how good it is."""


def prepare_judge(config: Config, images: Images, digest: str, device: torch.device) -> str:
    """Train the classifier that this data needs, if it was not yet.

    Args:
        config: of the run.
        images: those it trains on.
        digest: stands for them.
        device: where to train.

    Returns:
        Its file in the home; '' where nothing is known of images, or nothing is to be evaluated.
    """
    evaluation = config.evaluation
    told = images.class_names or images.attribute_names
    if evaluation.features != "classifier":
        _pretrained(evaluation, device)  # a wrong file is told of here, before a worker is held
    if not (evaluation.samples or evaluation.report_samples) or not told:
        return ""
    height, width, channels = images.image_shape
    most = _TRIPLES if _stacked(images) else _LEARNED
    count = min(most, _LEARNED_BYTES // (height * width * channels))
    ids, held = _shuffled_ids(images), _held_out(images)
    cache = config.home / "classifiers"
    seen = f"{config.data.crop}/{count}{'/flip' if config.data.flip else ''}"
    classifier = reference_classifier(
        *_labelled(config, images, ids[held:][:count]),
        *_labelled(config, images, ids[:held][:_TESTED]),
        data_digest=f"{digest}/{seen}",
        cache=cache,
        device=device,
    )
    return str(cache / f"{classifier.hash}.pt")


def _labelled(config: Config, images: Images, ids: np.ndarray) -> tuple[Unread, torch.Tensor]:
    """Pixels, to be read if need be, and classes or attributes, of those ids that have any."""
    rows = images.rows(ids)
    labels = rows.labels if images.class_names else rows.attributes
    if images.class_names:
        known = labels >= 0
        ids, labels = ids[known], labels[known]
    labels = torch.from_numpy(labels)
    height, width, channels = config.data.seen_shape(images.image_shape)
    if not _stacked(images):
        shape = (len(ids), height, width, channels)
        return Unread(shape, lambda: read(config, images, ids)), labels

    def digits() -> torch.Tensor:
        return split_channels(read(config, images, ids), labels)[0]

    return Unread((channels * len(ids), height, width, 1), digits), split_labels(labels)


def _held_out(images: Images) -> int:
    return min(_HELD_OUT, len(images) // 2)


def open_extractor(
    judge: str, images: Images, device: torch.device, evaluation: EvaluationConfig
) -> Extractor:
    """The extractor of these images, in the process that uses it.

    Args:
        judge: what `prepare_judge` returned.
        images: those the run trains on.
        device: where to look.
        evaluation: whether features are another network's; modes are never.
    """
    own = _own_extractor(judge, images, device)
    if evaluation.features == "classifier":
        return own
    return Joined(_pretrained(evaluation, device), own)


def _pretrained(evaluation: EvaluationConfig, device: torch.device) -> Extractor:
    kind = Inception if evaluation.features == "inception" else DinoV2
    return kind(Path(evaluation.weights or ""), device)


def _own_extractor(judge: str, images: Images, device: torch.device) -> Extractor:
    if not judge:
        return Pixels(device)
    classifier = load_classifier(Path(judge), device)
    if _stacked(images):
        return ByChannel(classifier)
    if images.class_names:
        return ByClass(classifier, images.class_names)
    known = images.rows(_shuffled_ids(images)[:_LEARNED]).attributes
    try:
        return ByAttributes(classifier, images.attribute_names, known)
    except ValueError as error:  # attributes that cannot be told apart: still its features are
        print(f"no modes: {error}", flush=True)
        return Features(classifier)


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
    return read(config, images, ids)


def comparable(judge: str, images: Images, samples: int, parts: int = 1) -> int:
    """How many reals there are to compare with, at most `samples`; 0 where they are too few.

    Args:
        judge: what `prepare_judge` returned: what its classifier learned is left out.
        images: those the run trains on.
        samples: how many are wanted.
        parts: how many sets of them.
    """
    known = _held_out(images) if judge else len(images)
    found = min(samples, known // parts)
    return found if found >= FEWEST else 0


def _stacked(images: Images) -> bool:
    """Whether each channel is a digit of its own: stacked MNIST."""
    return len(images.class_names) == 1000 and images.image_shape[2] == 3


def _shuffled_ids(images: Images) -> np.ndarray:
    return np.random.default_rng(_SEED).permutation(len(images))


def read(config: Config, images: Images, ids: np.ndarray) -> torch.Tensor:
    """Images as D is shown them, cropped and mirrored: uint8 (n, H, W, C) on the CPU."""
    pixels = torch.empty((len(ids), *images.image_shape), dtype=torch.uint8)
    # Shard by shard: the cache of far ones may have no room for all that hold some of these.
    order = np.argsort(ids // images.shard_rows, kind="stable")
    ends = np.flatnonzero(np.diff(ids[order] // images.shard_rows)) + 1
    for which in np.split(order, ends):
        part = torch.empty((len(which), *images.image_shape), dtype=torch.uint8)
        images.gather(ids[which], part)
        pixels[which] = part
    return augment(
        pixels,
        crop=config.data.crop,
        flip=config.data.flip,
        rng_seed=_SEED,
        step=0,
        batch_size=len(ids),
        mine=slice(0, len(ids)),
    )
