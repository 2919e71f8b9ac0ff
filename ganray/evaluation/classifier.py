"""Reference classifier: predicts the mode of an image, a confidence, and features.

It is trained on the labels of the reference images, so no weights are downloaded. Metrics that
count modes or measure distances between images use it, and report its ``hash``.

Labels are either classes, one per image, or attributes, each present or absent. The two differ in
the loss, the label of noise, and the accuracy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    normalize,
    one_hot,
    pad,
)

from ganray.data.format import Shape
from ganray.data.storage import fetch
from ganray.errors import UserError
from ganray.metrics.matrices import eigh
from ganray.progress import Progress

logger = logging.getLogger(__name__)

ImageBatch = NDArray[np.uint8] | torch.Tensor
"""uint8 (n, H, W, C) in [0, 255], with C 1 or 3."""
Labels = NDArray[np.int64] | NDArray[np.uint8] | torch.Tensor
"""Classes, int64 (n,) in [0, K), or attributes, uint8 (n, K) of 0 and 1."""

FEATURES = 128
"""Width of the penultimate layer."""
PIXELS_PER_BATCH = 256 * 28 * 28
"""Pixels in one batch for inference, whose activations take about 100 MB."""
_WHITENED_IMAGES = 10_000
"""Maximum number of training images from which the covariance of features is computed."""
_MIN_VARIANCE = 1e-3
"""Variance, relative to the largest, below which directions of features are not scaled up: in some
of them training images do not vary at all."""

UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError)
"""Errors of torch.load and load_state_dict for a truncated, damaged or unrelated file."""


@dataclass(frozen=True)
class TrainingRecipe:
    """Hyperparameters of the classifier. The hash covers every field and the data."""

    version: int = 3
    """Version of this module's code; it changes whenever the trained weights do."""
    epochs: float = 2.5
    """Passes over the training images; see ``min_images``."""
    min_images: int = 30_000
    """Minimum number of images to train on, in as many passes as needed: small sets need more."""
    batch_size: int = 128
    """Images per step, including mixed images and noise."""
    lr: float = 0.02
    """Peak of AdamW's one-cycle schedule; more steps at 0.01 are no better."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW; 0.05 works as well."""
    shift: float = 1 / 28
    """Maximum random shift as a share of the side, and at least one pixel."""
    blends: float = 1 / 8
    """Share of a batch that is mixed with another image, up to 1/2; see ``mixup_and_noise``."""
    noise: float = 1 / 16
    """Share of a batch that is replaced by noise; see ``mixup_and_noise``."""
    rng_seed: int = 0
    """Seed of initial weights, image order, shifts, mixing and noise."""


ATTRIBUTES_RECIPE = TrainingRecipe(epochs=0, min_images=100_000)
"""Recipe for attributes, whose cost does not grow with the set: 36 s on one CPU core at 32x32.
After training on 4,000 procedural faces, it predicts 95 % of the attributes of others; always
guessing the more common value is right for 80 %."""


@dataclass(frozen=True)
class LazyImages:
    """Images that are read only if the classifier is not in the cache."""

    shape: tuple[int, int, int, int]
    """(n, H, W, C) of the result of ``read``."""
    read: Callable[[], ImageBatch]
    dtype: str = "uint8"

    def __len__(self) -> int:
        return self.shape[0]


class Classifier(nn.Module):
    """A small CNN from images (H, W, C) to K classes or attributes."""

    mean: torch.Tensor
    """Channel means of the training images, float32 (C, 1, 1) in [0, 255]."""
    std: torch.Tensor
    """Channel standard deviations, float32 (C, 1, 1)."""
    center: torch.Tensor
    """Mean of the training images' features at length 1, float32 (128,)."""
    whitening: torch.Tensor
    """Matrix that turns their covariance into the identity, float32 (128, 128)."""

    def __init__(self, image_shape: Shape, classes: int, rng_seed: int) -> None:
        super().__init__()
        self.image_shape, self.classes = image_shape, classes
        self.accuracy = float("nan")
        """Accuracy on held-out images, in [0, 1]; for attributes their mean."""
        self.balanced_accuracy: tuple[float, ...] = ()
        """For each attribute, the mean of the accuracies on held-out images with and without it,
        in [0, 1]; 1/2 is chance, nan if all or none have it. Empty for classes."""
        self.hash = ""
        """16 hex digits that identify the data and the recipe."""
        channels = image_shape[2]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.register_buffer("center", torch.zeros(FEATURES))
        self.register_buffer("whitening", torch.eye(FEATURES))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed CUDA's generators.
            torch.default_generator.manual_seed(rng_seed)
            self.body = _body(image_shape)
            self.head = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # pyright: ignore # halves the training time

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map float32 (n, C, H, W) in [0, 255] to logits, float32 (n, K)."""
        return self.head(self._embed(pixels))

    def features(self, images: ImageBatch) -> torch.Tensor:
        """Return the penultimate layer, float32 (n, 128), not negative, on the model's device."""
        check_images("images", images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images: {tuple(images.shape)}; this classifier was trained on (n, "
                f"{', '.join(map(str, self.image_shape))}); train another for this shape"
            )
        with torch.no_grad():
            return torch.cat([self._embed(x) for x in batches(images, self.mean.device)])

    def whiten(self, features: torch.Tensor) -> torch.Tensor:
        """Return features at length 1 in coordinates in which real images vary equally.

        Those of training images have mean 0 and covariance 1, float32 (n, 128).
        """
        return (normalize(features) - self.center) @ self.whitening

    def predict(self, images: ImageBatch) -> torch.Tensor:
        """Return logits, float32 (n, K), which are ``head`` of ``features``.

        Their softmax, or the sigmoid for attributes, is low for noise and for blends of two images,
        so it can gate samples.
        """
        with torch.no_grad():
            return self.head(self.features(images))

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body((pixels - self.mean) / self.std)


class FewImagesError(UserError):
    """There are too few images, or images of a class, to train a classifier."""


def reference_classifier(
    train_images: ImageBatch | LazyImages,
    train_labels: Labels,
    test_images: ImageBatch | LazyImages,
    test_labels: Labels,
    *,
    data_digest: str,
    cache: Path,
    device: torch.device,
    recipe: TrainingRecipe | None = None,
    storage: str | None = None,
) -> Classifier:
    """Return the classifier of these images, read from ``cache/<hash>.pt`` or trained.

    Training is deterministic on one machine and number of threads. Elsewhere sums are rounded
    differently, and so are the weights: to compare runs to the last digit, share the cache. The
    global random state is neither used nor changed.

    Args:
        train_images: uint8 (n, H, W, C), H and W at least 8, C 1 or 3.
        train_labels: Classes, int64 (n,), of which the largest is K - 1, or attributes, uint8
            (n, K).
        test_images: Held-out images, uint8 (m, H, W, C), m at least 1, that measure the accuracy.
        test_labels: Labels of the m images, of the same kind.
        data_digest: Identifies images and labels, like a manifest's digest; not empty.
        cache: Folder of trained classifiers, created if absent. An unreadable file is replaced.
        device: Where the classifier is trained and stays.
        recipe: Hyperparameters; None for ``TrainingRecipe()``, or ``ATTRIBUTES_RECIPE`` if labels
            are attributes.
        storage: URL of the storage from which the file is downloaded if it is there only.

    Raises:
        UserError: There are too few labeled images or classes.
    """
    assert data_digest, "an empty digest would mix up two sets in the cache"
    kind = "attributes" if train_labels.ndim == 2 else "classes"
    recipe = recipe or (ATTRIBUTES_RECIPE if kind == "attributes" else TrainingRecipe())
    classes = _count_outputs(train_images, train_labels, test_images, test_labels)
    shape = (train_images.shape[1], train_images.shape[2], train_images.shape[3])
    counts = [len(train_images), len(test_images)]
    identity = {"data": data_digest, "shape": shape, kind: classes, "counts": counts}
    text = json.dumps(identity | asdict(recipe), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache / f"{digest}.pt"
    fetch(path, cache.parent, storage)
    if path.exists():
        try:
            return _load(path, device)
        except UNREADABLE as error:
            name = type(error).__name__
            logger.warning(f"{path} cannot be read ({name}): training the classifier again")
    train_images, test_images = (
        images.read() if isinstance(images, LazyImages) else images
        for images in (train_images, test_images)
    )
    classifier = Classifier(shape, classes, recipe.rng_seed).to(device)
    classifier.hash = digest
    _train(classifier, as_tensor(train_images), as_tensor(train_labels), recipe)
    test_labels = as_tensor(test_labels).cpu()
    if kind == "attributes":
        _calibrate(classifier, test_images, test_labels)
    _fit_whitening(classifier, train_images)
    _measure_accuracy(classifier, test_images, test_labels)
    _save(path, classifier)
    return classifier.requires_grad_(False)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Load the classifier that ``reference_classifier`` saved as ``cache/<hash>.pt``.

    Raises:
        UserError: The file is missing, damaged or unrelated.
    """
    try:
        return _load(path, device)
    except UNREADABLE as error:
        raise UserError(
            f"classifier {path} cannot be read ({type(error).__name__}); delete it, and the next"
            " run trains it again"
        ) from error


def as_tensor(array: ImageBatch | Labels) -> torch.Tensor:
    """Return the array as a tensor, copied only if torch cannot share its memory."""
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def batches(
    images: ImageBatch, device: torch.device, size: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield the images in order as float32 (n, C, H, W) in [0, 255], at least one batch.

    Args:
        images: uint8 (N, H, W, C), N at least 0.
        device: Device of the batches.
        size: Images per batch; None for ``PIXELS_PER_BATCH`` pixels.
    """
    step = size or max(1, PIXELS_PER_BATCH // (images.shape[1] * images.shape[2]))
    for start in range(0, max(len(images), 1), step):
        yield _pixels(images[start : start + step], device)


def check_images(name: str, images: ImageBatch | LazyImages) -> None:
    """Check for uint8 (n, H, W, C) with H and W at least 8 and C 1 or 3, else raise ValueError."""
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 4 or shape[3] not in (1, 3) or min(shape[1:3]) < 8:
        raise ValueError(
            f"{name}: {dtype} {shape}; must be uint8 (n, H, W, C), H and W at least 8 and C 1 or "
            "3; pass the bytes as they are stored, with an axis for the channel"
        )


def shuffled_batches(
    count: int, size: int, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield `steps` batches of `size` rows; each pass is shuffled and drops its last rows."""
    order = torch.randperm(count, generator=generator)
    start = 0
    for _ in range(steps):
        if start + size > count:
            order, start = torch.randperm(count, generator=generator), 0
        yield order[start : start + size]
        start += size


def shift_images(
    pixels: torch.Tensor, recipe: TrainingRecipe, generator: torch.Generator
) -> torch.Tensor:
    """Move each image (n, C, H, W) by a few pixels at random, with the edge repeated."""
    n, _, height, width = pixels.shape
    max_y, max_x = (max(1, round(recipe.shift * side)) for side in (height, width))
    dy = torch.randint(2 * max_y + 1, (n,), generator=generator)
    dx = torch.randint(2 * max_x + 1, (n,), generator=generator)
    padded = pad(pixels, (max_x, max_x, max_y, max_y), mode="replicate")
    # A view of all shifts, (n, C, 2 max_y + 1, 2 max_x + 1, H, W); one per image is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    device = pixels.device
    return windows[torch.arange(n, device=device), :, dy.to(device), dx.to(device)]


def mixup_and_noise(
    x: torch.Tensor,
    y: torch.Tensor,
    noise_label: float,
    recipe: TrainingRecipe,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix some images and replace some by noise, in place, so that confidence can gate samples.

    A classifier trained on MNIST alone is confident (p > 0.9) for all uniform noise and for a third
    of the averages of two digits; trained with both of these, for none and for 1 in 100. A mixed
    image has the mixed label (Zhang et al. 2018); noise has the uniform label (Hendrycks et al.
    2019). For attributes the label of noise is 1/2: with their share among the images, noise would
    become a confident instance of "no hat".

    x is float32 (n, C, H, W) in [0, 255], in random order; y is float32 (n, K), probabilities.
    `noise_label` is 1 / K for classes and 1/2 for attributes. `generator` is on the CPU.
    """
    device, n = x.device, len(x)
    mixed, noise = int(recipe.blends * n), int(recipe.noise * n)
    weight = torch.rand(mixed, 1, generator=generator).to(device)
    partner = slice(mixed, 2 * mixed)  # any rows will do, as the order is random
    y[:mixed] = weight * y[:mixed] + (1 - weight) * y[partner]
    weight = weight[:, :, None, None]
    x[:mixed] = weight * x[:mixed] + (1 - weight) * x[partner]
    # Half of the noise is an image with shuffled pixels; the other half is normal around any level,
    # with any contrast down to none.
    normal, shuffled = slice(n - noise, n - noise // 2), slice(n - noise // 2, n)
    places = torch.randperm(x[0, 0].numel(), generator=generator).to(device)
    x[shuffled] = x[shuffled].flatten(2)[:, :, places].view_as(x[shuffled])
    level, contrast = 255 * torch.rand(2, len(x[normal]), 1, 1, 1, generator=generator)
    values = level + contrast * torch.randn(x[normal].shape, generator=generator)
    x[normal] = values.clamp(0, 255).to(device)
    y[n - noise :] = noise_label
    return x.contiguous(memory_format=torch.channels_last), y


def _body(image_shape: Shape) -> nn.Sequential:
    """Return at least two convolutions, down to 8x8 or less, and the layer of features."""
    height, width, inputs = image_shape
    # Images below 16 pixels cost little and gain from more channels.
    outputs = 64 if min(height, width) < 16 else 16
    stages: list[nn.Module] = []
    while len(stages) < 2 or (max(height, width) > 8 and min(height, width) > 1):
        # Pooling first makes normalization and ReLU four times cheaper.
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        stages.append(nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU()))
        height, width, inputs, outputs = height // 2, width // 2, outputs, min(2 * outputs, 128)
    return nn.Sequential(
        *stages,
        nn.Flatten(),
        nn.Linear(inputs * height * width, FEATURES, bias=False),
        nn.BatchNorm1d(FEATURES),
        nn.ReLU(),
    )


@torch.enable_grad()  # evaluation code often turns gradients off
def _train(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, recipe: TrainingRecipe
) -> None:
    """Train in place and leave the classifier in eval mode."""
    device = classifier.mean.device
    # Channel statistics of 10 to 20 million pixels.
    subset = _pixels(images[:: max(1, images.numel() // 10_000_000)], device)
    std, mean = torch.std_mean(subset, dim=(0, 2, 3), keepdim=True)
    classifier.mean.copy_(mean[0])
    classifier.std.copy_(std[0].clamp(min=1.0))  # a channel may be constant
    del subset
    size = min(recipe.batch_size, len(images))
    steps = max(1, round(max(recipe.epochs * len(images), recipe.min_images) / size))
    optimizer = torch.optim.AdamW(
        classifier.parameters(),
        recipe.lr,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    attributes = labels.ndim == 2
    loss = binary_cross_entropy_with_logits if attributes else cross_entropy
    noise_label = 1 / 2 if attributes else 1 / classifier.classes
    # A CPU generator draws the same numbers for every device.
    generator = torch.Generator().manual_seed(recipe.rng_seed)
    classifier.train()
    with Progress(steps * size, "train the reference classifier", "images") as progress:
        for rows in shuffled_batches(len(images), size, steps, generator):
            x = shift_images(_pixels(images[rows.to(images.device)], device), recipe, generator)
            y = labels[rows.to(labels.device)]
            y = (y if attributes else one_hot(y, classifier.classes)).float().to(device)
            x, y = mixup_and_noise(x, y, noise_label, recipe, generator)
            optimizer.zero_grad()
            loss(classifier(x), y).backward()
            optimizer.step()
            schedule.step()
            progress.add(size)
    classifier.eval()


def _calibrate(classifier: Classifier, images: ImageBatch, attributes: torch.Tensor) -> None:
    """Shift the logits so that each attribute is predicted for as many images as have it.

    Of the images that it is trained on the classifier predicts the true shares, of others it misses
    some attributes in more images than it invents them. Copies of training images would seem to
    have too many of these, as samples are compared with other images.
    """
    logits = classifier.predict(images).cpu()
    for column, count in enumerate(attributes.sum(0).tolist()):
        if 0 < count < len(images):
            absent, present = logits[:, column].sort().values[-count - 1 :][:2]
            if not absent <= 0 < present:
                classifier.head.bias.data[column] -= (absent + present).item() / 2


def _fit_whitening(classifier: Classifier, images: ImageBatch) -> None:
    step = -(-len(images) // _WHITENED_IMAGES)
    features = normalize(classifier.features(images[::step])).double()
    classifier.center.copy_(features.mean(0))
    values, vectors = eigh(torch.cov(features.T))
    scales = values.clamp_min(max(_MIN_VARIANCE * values[-1].item(), 1e-12)).rsqrt()
    classifier.whitening.copy_(vectors * scales)


def _measure_accuracy(classifier: Classifier, images: ImageBatch, labels: torch.Tensor) -> None:
    logits = classifier.predict(images).cpu()
    if labels.ndim == 1:
        classifier.accuracy = (logits.argmax(1) == labels).double().mean().item()
        return
    correct, present = (logits > 0) == labels, labels.bool()
    classifier.accuracy = correct.double().mean().item()
    both = torch.stack([(correct & rows).sum(0) / rows.sum(0) for rows in (present, ~present)])
    classifier.balanced_accuracy = tuple(both.mean(0).tolist())


def _load(path: Path, device: torch.device) -> Classifier:
    """Load a file of `_save` without running code from it; raises ``UNREADABLE``."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    height, width, channels = content["shape"]
    classifier = Classifier((height, width, channels), content["classes"], rng_seed=0)
    classifier.load_state_dict(content["weights"])
    classifier.accuracy = float(content["accuracy"])
    classifier.balanced_accuracy = tuple(content["balanced_accuracy"])
    classifier.hash = path.stem
    return classifier.to(device).eval().requires_grad_(False)


def _save(path: Path, classifier: Classifier) -> None:
    """Write the file atomically, as several processes may write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    content = {
        "shape": list(classifier.image_shape),
        "classes": classifier.classes,
        "accuracy": classifier.accuracy,
        "balanced_accuracy": classifier.balanced_accuracy,
        "weights": {name: value.cpu() for name, value in classifier.state_dict().items()},
    }
    torch.save(content, partial)
    os.replace(partial, path)


def _pixels(images: ImageBatch, device: torch.device) -> torch.Tensor:
    """Convert uint8 (n, H, W, C) to float32 (n, C, H, W) in [0, 255]."""
    return as_tensor(images).to(device).permute(0, 3, 1, 2).float()


def _count_outputs(
    train_images: ImageBatch | LazyImages,
    train_labels: Labels,
    test_images: ImageBatch | LazyImages,
    test_labels: Labels,
) -> int:
    """Check that both sets can be used, and return the number of classes or attributes."""
    check_images("train_images", train_images)
    check_images("test_images", test_images)
    assert train_images.shape[1:] == test_images.shape[1:]
    assert (len(train_images), len(test_images)) == (len(train_labels), len(test_labels))
    if len(train_images) < 2 or len(test_images) < 1:  # BatchNorm needs two
        raise FewImagesError(
            f"{len(train_images)} training and {len(test_images)} test images have a label; the "
            "reference classifier needs at least 2 and 1; use a larger set"
        )
    if train_labels.ndim == 2:
        assert train_labels.shape[1] == test_labels.shape[1] > 0
        return train_labels.shape[1]
    classes, tested = int(train_labels.max()) + 1, int(test_labels.max()) + 1
    if classes < max(2, tested):  # a rare class may be absent from the test images
        raise FewImagesError(
            f"{classes} classes in the training images and {tested} in the test images of the "
            "reference classifier; must be at least 2, and none in the test images alone; use a "
            "set with more images per class"
        )
    return classes
