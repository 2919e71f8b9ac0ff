"""The reference classifier: says which mode an image belongs to, how surely, and where it lies.

It is trained here, on the labels of the real images, so no weights are fetched. Everything that
counts modes or measures distances between images looks through it, and states its ``hash``.

Labels are either classes, of which each image has one, or attributes, each of which it has or has
not; only the loss, what noise is called and the accuracy differ.
"""

from __future__ import annotations

import hashlib
import json
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
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, pad

from ganray.errors import UserError
from ganray.progress import Progress

ImageBatch = NDArray[np.uint8] | torch.Tensor
"""uint8 (n, H, W, C) in [0, 255], C being 1 or 3."""
Labels = NDArray[np.int64] | NDArray[np.uint8] | torch.Tensor
"""Classes, int64 (n,) in [0, K); or attributes, uint8 (n, K) of 0 and 1, as shards hold them."""

Shape = tuple[int, int, int]

FEATURES = 128
"""Width of the penultimate layer."""
PIXELS_AT_ONCE = 256 * 28 * 28
"""Pixels of one batch of images to look at; their activations take about 100 MB."""

UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError)
"""What torch.load and load_state_dict raise of a file that was cut, spoilt or is another."""


@dataclass(frozen=True)
class LazyImages:
    """ImageBatch that need not be read where the classifier that learned them is found."""

    shape: tuple[int, int, int, int]
    """(n, H, W, C) of what ``read`` gives."""
    read: Callable[[], ImageBatch]
    dtype: str = "uint8"
    """As ``read`` gives."""

    def __len__(self) -> int:
        """Return n."""
        return self.shape[0]


class Classifier(nn.Module):
    """A small CNN from images (H, W, C) to K classes or attributes.

    Made by ``reference_classifier``.
    """

    mean: torch.Tensor
    """Of each channel of the training images, float32 (C, 1, 1) in [0, 255]; ``std`` likewise."""
    std: torch.Tensor

    def __init__(self, image_shape: Shape, classes: int, rng_seed: int) -> None:
        super().__init__()
        self.image_shape, self.classes = image_shape, classes
        self.accuracy = float("nan")
        """Share of the held-out images whose class is recognised, in [0, 1]; the mean of these
        shares over attributes."""
        self.balanced: tuple[float, ...] = ()
        """Of each attribute, the mean of the shares recognised of the held-out images that have
        it and of those that have not, in [0, 1]: 1/2 is a guess. nan where all have or none has.
        () where classes are told apart."""
        self.hash = ""
        """16 hex digits: names the data and the recipe."""
        channels = image_shape[2]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed CUDA's generators too.
            torch.default_generator.manual_seed(rng_seed)
            self.body = _body(image_shape)
            self.head = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # pyright: ignore # trains in half the time

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 (n, C, H, W) in [0, 255] -> logits, float32 (n, K)."""
        return self.head(self._embed(pixels))

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body((pixels - self.mean) / self.std)

    def features(self, images: ImageBatch) -> torch.Tensor:
        """The penultimate layer, float32 (n, 128), not negative, on the classifier's device.

        Raises:
            ValueError: The images have another shape or dtype than those it was trained on.
        """
        check_images("images", images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise UserError(
                f"images: {tuple(images.shape)}; this classifier was trained on (n, "
                f"{', '.join(map(str, self.image_shape))}); train another on images of that shape"
            )
        with torch.no_grad():
            return torch.cat([self._embed(x) for x in batches(images, self.mean.device)])

    def predict(self, images: ImageBatch) -> torch.Tensor:
        """Logits, float32 (n, K), on the classifier's device; ``head`` of ``features``.

        Softmax, of attributes sigmoid, gives probabilities that can be gated: see
        ``TrainingRecipe.blends`` and ``TrainingRecipe.noise``.

        Raises:
            ValueError: As ``features``.
        """
        with torch.no_grad():
            return self.head(self.features(images))


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
) -> Classifier:
    """The classifier of this data, trained once and then read from ``cache/<hash>.pt``.

    On one machine and number of threads the same call ends in the same weights; elsewhere sums
    are rounded otherwise, and weights with them: to compare runs to the last digit, share the
    cache. The global random state is neither used nor changed.

    Args:
        train_images: uint8 (n, H, W, C), H and W at least 8, C 1 or 3. LazyImages ones are read only
            to be learned: labels, shape and digest name the classifier.
        train_labels: Classes, int64 (n,) in [0, K), K being the largest of them and one; or
            attributes, uint8 (n, K) of 0 and 1.
        test_images: uint8 (m, H, W, C) held out, m at least 1: they measure the accuracy.
        test_labels: As ``train_labels``, of m images.
        data_digest: Names images and labels, for example a manifest's digest; not empty.
        cache: Folder of trained classifiers; made if absent. A file there that cannot be read is
            replaced, as it can be made again.
        device: Where it is trained and stays.
        recipe: How to train; if None ``TrainingRecipe()``, for attributes ``ATTRIBUTES_RECIPE``.

    Raises:
        ValueError: ImageBatch and labels do not fit each other or the above.
    """
    attributes = train_labels.ndim == 2
    recipe = recipe or (ATTRIBUTES_RECIPE if attributes else TrainingRecipe())
    shape, classes = _check(train_images, train_labels, test_images, test_labels)
    if not data_digest:
        raise UserError("data_digest='': must name the data, or the cache would mix up two sets")
    counts = [len(train_images), len(test_images)]
    kind = "attributes" if attributes else "classes"
    made_of = {"data": data_digest, "shape": shape, kind: classes, "counts": counts}
    text = json.dumps(made_of | asdict(recipe), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache / f"{digest}.pt"
    classifier = _load(path, Classifier(shape, classes, recipe.rng_seed))
    if classifier is None:
        classifier = Classifier(shape, classes, recipe.rng_seed).to(device)
        _train(classifier, as_tensor(_read(train_images)), as_tensor(train_labels), recipe)
        _examine(classifier, _read(test_images), as_tensor(test_labels).cpu())
        _save(path, classifier)
    classifier.hash = digest
    return classifier.to(device).eval().requires_grad_(False)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """The classifier that ``reference_classifier`` left at ``cache/<hash>.pt``.

    Raises:
        ValueError: The file is missing, or damaged, or another.
    """
    try:
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        height, width, channels = held["shape"]
        classifier = Classifier((height, width, channels), held["classes"], rng_seed=0)
        classifier.load_state_dict(held["weights"])
        classifier.accuracy = float(held["accuracy"])
        classifier.balanced = tuple(held["balanced"])
    except UNREADABLE as error:
        raise UserError(
            f"classifier {path} cannot be read ({type(error).__name__}): delete it, and the next"
            " run trains it anew"
        ) from error
    classifier.hash = path.stem
    return classifier.to(device).eval().requires_grad_(False)


def _body(image_shape: Shape) -> nn.Sequential:
    """Convolutions down to 8x8 or less, at least two, and the layer of features."""
    height, width, inputs = image_shape
    # ImageBatch below 16 pixels cost little, and gain from more channels.
    outputs = 64 if min(height, width) < 16 else 16
    stages: list[nn.Module] = []
    while len(stages) < 2 or (max(height, width) > 8 and min(height, width) > 1):
        # Pooled first: normalised and rectified at a quarter of the work.
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


@torch.enable_grad()  # who measures has often turned gradients off
def _train(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, recipe: TrainingRecipe
) -> None:
    """Train in place, and leave in eval mode."""
    device = classifier.mean.device
    _measure(classifier, images)
    size = min(recipe.batch_size, len(images))
    steps = max(1, round(max(recipe.epochs * len(images), recipe.min_images) / size))
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(
        parameters, recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    attributes = labels.ndim == 2
    loss = binary_cross_entropy_with_logits if attributes else cross_entropy
    unknown = 1 / 2 if attributes else 1 / classifier.classes
    # On the CPU, so that the draws are the same on every device.
    generator = torch.Generator().manual_seed(recipe.rng_seed)
    classifier.train()
    with Progress(steps * size, "train the reference classifier", "images") as progress:
        for rows in orders(len(images), size, steps, generator):
            x = shifted(_pixels(images[rows.to(images.device)], device), recipe, generator)
            y = labels[rows.to(labels.device)]
            y = (y if attributes else one_hot(y, classifier.classes)).float().to(device)
            x, y = spoilt(x, y, unknown, recipe, generator)
            optimizer.zero_grad()
            loss(classifier(x), y).backward()
            optimizer.step()
            schedule.step()
            progress.add(size)
    classifier.eval()


def _examine(classifier: Classifier, images: ImageBatch, labels: torch.Tensor) -> None:
    """Set what it recognises of held-out images."""
    logits = classifier.predict(images).cpu()
    if labels.ndim == 1:
        classifier.accuracy = (logits.argmax(1) == labels).double().mean().item()
        return
    right, has = (logits > 0) == labels, labels.bool()
    classifier.accuracy = right.double().mean().item()
    of_either = torch.stack([(right & part).sum(0) / part.sum(0) for part in (has, ~has)])
    classifier.balanced = tuple(of_either.mean(0).tolist())


def _measure(classifier: Classifier, images: torch.Tensor) -> None:
    """Set the mean and the deviation of each channel, of some 10 to 20 million pixels."""
    sample = _pixels(images[:: max(1, images.numel() // 10_000_000)], classifier.mean.device)
    std, mean = torch.std_mean(sample, dim=(0, 2, 3), keepdim=True)
    classifier.mean.copy_(mean[0])
    classifier.std.copy_(std[0].clamp(min=1.0))  # a channel may be all of one level


def _load(path: Path, classifier: Classifier) -> Classifier | None:
    """The classifier with the weights of the cache, None without; never unpickles code."""
    if not path.exists():
        return None
    try:
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        classifier.load_state_dict(held["weights"])
        classifier.accuracy = float(held["accuracy"])
        classifier.balanced = tuple(held.get("balanced", ()))
    except UNREADABLE as error:
        print(f"{path}: cannot be read ({type(error).__name__}); trained anew", flush=True)
        return None
    return classifier


def _save(path: Path, classifier: Classifier) -> None:
    """Write all or nothing, also where several processes write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    weights = {name: value.cpu() for name, value in classifier.state_dict().items()}
    described = {"shape": list(classifier.image_shape), "classes": classifier.classes}
    figures = {"accuracy": classifier.accuracy, "balanced": classifier.balanced}
    torch.save(described | figures | {"weights": weights}, part)
    os.replace(part, path)


def _read(images: ImageBatch | LazyImages) -> ImageBatch:
    if not isinstance(images, LazyImages):
        return images
    read = images.read()
    assert tuple(read.shape) == images.shape, (tuple(read.shape), images.shape)
    return read


def as_tensor(array: ImageBatch | Labels) -> torch.Tensor:
    """The same numbers as a tensor; copied only where torch cannot share them."""
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def batches(
    images: ImageBatch, device: torch.device, at_once: int | None = None
) -> Iterator[torch.Tensor]:
    """The images in order, at least one batch of them: float32 (n, C, H, W) in [0, 255].

    Args:
        images: uint8 (N, H, W, C) in [0, 255], N from 0.
        device: Where the batches are to be.
        at_once: ImageBatch of a batch; as many as make ``PIXELS_AT_ONCE`` if None.
    """
    step = at_once or max(1, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    for start in range(0, max(len(images), 1), step):
        yield _pixels(images[start : start + step], device)


def _pixels(images: ImageBatch, device: torch.device) -> torch.Tensor:
    """uint8 (n, H, W, C) -> float32 (n, C, H, W) in [0, 255]."""
    return as_tensor(images).to(device).permute(0, 3, 1, 2).float()


def check_images(name: str, images: ImageBatch | LazyImages) -> None:
    """Refuse what is not uint8 (n, H, W, C), H and W at least 8 and C 1 or 3.

    Raises:
        ValueError: It is not.
    """
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 4 or shape[3] not in (1, 3) or min(shape[1:3]) < 8:
        raise UserError(
            f"{name}: {dtype} {shape}; must be uint8 (n, H, W, C), H and W at least 8 and C 1 or "
            "3; hand over the bytes as they are stored, with an axis for the channel"
        )


def _check(
    train_images: ImageBatch | LazyImages,
    train_labels: Labels,
    test_images: ImageBatch | LazyImages,
    test_labels: Labels,
) -> tuple[Shape, int]:
    """(image shape, classes or attributes) of a set that can be learned."""
    _refuse_set("train", train_images, train_labels)
    _refuse_set("test", test_images, test_labels)
    kind = "attributes" if train_labels.ndim == 2 else "classes"
    classes, tested = _outputs(train_labels), _outputs(test_labels)
    # A class may be rare enough for no test image to show it; attributes come in columns.
    enough = tested == classes if kind == "attributes" else max(2, tested) <= classes
    alike = (train_images.shape[1:], train_labels.ndim) == (test_images.shape[1:], test_labels.ndim)
    if not alike or not enough:
        raise UserError(
            f"train_images {tuple(train_images.shape)} of {classes} {kind}, test_images "
            f"{tuple(test_images.shape)} of {tested}: must be of one shape and of the same "
            f"{kind}{', at least 2' if kind == 'classes' else ''}; take both from one set"
        )
    height, width, channels = train_images.shape[1:]
    return (height, width, channels), classes


def _outputs(labels: Labels) -> int:
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def _refuse_set(name: str, images: ImageBatch | LazyImages, labels: Labels) -> None:
    check_images(f"{name}_images", images)
    shape, dtype = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    least = 2 if name == "train" else 1  # BatchNorm cannot learn from one
    if len(shape) == 2:
        sound = dtype == "uint8" and 0 not in shape and labels.max() <= 1
    else:
        sound = dtype == "int64" and len(shape) == 1 and len(labels) and labels.min() >= 0
    if not sound or len(labels) != len(images) or len(images) < least:
        raise UserError(
            f"{name}_labels: {dtype} {shape} for {len(images)} images; must be classes, int64 of "
            "at least 0, one for each image, or attributes, uint8 of 0 and 1, a row for each, of "
            f"at least {least}; leave out images without a label"
        )


# How the reference classifier is trained: the numbers, and what its batches are made of.


@dataclass(frozen=True)
class TrainingRecipe:
    """How the classifier is trained. Every field, and the data, go into its hash."""

    version: int = 1
    """Counts the changes to the code here and in ``features`` that change what is learned."""
    epochs: float = 2.5
    """Passes over the training images; see ``min_images``."""
    min_images: int = 30_000
    """ImageBatch to see at least, in as many passes as that takes: small sets need more of them."""
    batch_size: int = 128
    """ImageBatch a step, spoilt ones included."""
    lr: float = 0.02
    """Peak of AdamW's one-cycle schedule; more steps at 0.01 learn no better."""
    weight_decay: float = 1e-4
    """Of AdamW, decoupled; 0.05 does as well."""
    shift: float = 1 / 28
    """ImageBatch are moved at random by up to this share of a side, and by up to a pixel at least."""
    blends: float = 1 / 8
    """Share of a batch that is mixed with another image, up to 1/2; see ``spoilt``."""
    noise: float = 1 / 16
    """Share of a batch that is replaced by noise; see ``spoilt``."""
    rng_seed: int = 0
    """Of the first weights, the order, the shifts, the blends and the noise."""


ATTRIBUTES_RECIPE = TrainingRecipe(epochs=0, min_images=100_000)
"""For attributes, at a cost that does not grow with the set: 36 s on one CPU core at 32x32. From
4,000 drawn faces it learns to tell 95 % of the attributes of others, of which 80 % are told by
always guessing what is commoner."""


def orders(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """`steps` batches of `size` rows; each pass in a new order, its rest left out."""
    order = torch.randperm(count, generator=generator)
    at = 0
    for _ in range(steps):
        if at + size > count:
            order, at = torch.randperm(count, generator=generator), 0
        yield order[at : at + size]
        at += size


def shifted(
    pixels: torch.Tensor, recipe: TrainingRecipe, generator: torch.Generator
) -> torch.Tensor:
    """Each image moved by a few pixels, the edge repeated: (n, C, H, W) as it came."""
    n, _, height, width = pixels.shape
    far_y, far_x = (max(1, round(recipe.shift * side)) for side in (height, width))
    dy = torch.randint(2 * far_y + 1, (n,), generator=generator)
    dx = torch.randint(2 * far_x + 1, (n,), generator=generator)
    padded = pad(pixels, (far_x, far_x, far_y, far_y), mode="replicate")
    # A view of all shifts, (n, C, 2 far_y + 1, 2 far_x + 1, H, W), of which one each is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    device = pixels.device
    return windows[torch.arange(n, device=device), :, dy.to(device), dx.to(device)]


def spoilt(
    x: torch.Tensor,
    y: torch.Tensor,
    unknown: float,
    recipe: TrainingRecipe,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some images blended and some made noise, in place, so that confidence can be gated.

    TrainedGenerator on MNIST alone, the classifier is sure (p > 0.9) of all uniform noise and of a third of
    the averages of two digits; with both of these, of none and of 1 in 100. Blends have the blend
    of both labels (Zhang et al. 2018), noise all classes alike (Hendrycks et al. 2019). Of
    attributes a blend is as sure as before where both images agree, and noise has each by half:
    its share among the images would make noise a sure instance of "no hat".

    Args:
        x: float32 (n, C, H, W) in [0, 255], in random order.
        y: float32 (n, K), probabilities; of classes they add up to 1.
        unknown: What noise has in all of y: 1 / K for classes, 1 / 2 for attributes.
        recipe: How many.
        generator: On the CPU.
    """
    device, n = x.device, len(x)
    blends, noise = int(recipe.blends * n), int(recipe.noise * n)
    share = torch.rand(blends, 1, generator=generator).to(device)
    other = slice(blends, 2 * blends)  # as good as any: the order is random
    y[:blends] = share * y[:blends] + (1 - share) * y[other]
    share = share[:, :, None, None]
    x[:blends] = share * x[:blends] + (1 - share) * x[other]
    # Half of the noise keeps an image's levels, in places drawn at random; the other half is
    # normal around any level, with any contrast down to none.
    normal, shuffled = slice(n - noise, n - noise // 2), slice(n - noise // 2, n)
    places = torch.randperm(x[0, 0].numel(), generator=generator).to(device)
    x[shuffled] = x[shuffled].flatten(2)[:, :, places].view_as(x[shuffled])
    level, contrast = 255 * torch.rand(2, len(x[normal]), 1, 1, 1, generator=generator)
    drawn = level + contrast * torch.randn(x[normal].shape, generator=generator)
    x[normal] = drawn.clamp(0, 255).to(device)
    y[n - noise :] = unknown
    return x.contiguous(memory_format=torch.channels_last), y
