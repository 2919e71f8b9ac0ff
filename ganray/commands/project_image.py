"""Project an image to the latent of its most similar sample."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import ExploreConfig
from ganray.data.format import Shape
from ganray.data.sources.image_folder import FORMATS, to_rgb
from ganray.data.transforms import to_float, to_uint8
from ganray.data.writer import resize_and_crop
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.figures import Row, labeled_rows
from ganray.gan import projection
from ganray.gan.latents import slerp
from ganray.progress import Progress

logger = logging.getLogger(__name__)


def check_image(path: Path) -> None:
    """Raise UserError if an image cannot be projected, before a generator is loaded."""
    _read_rgb(path, "white")


def project_image(
    generator: TrainedGenerator, options: ExploreConfig, path: Path, folder: Path
) -> list[Path]:
    """Write projection.png and the latent, projection.npy, float32 (size,), into a folder.

    The picture shows the image, its projection, the nearest random sample, and samples interpolated
    from the projection to random latents.

    Args:
        generator: The generator.
        options: Seed, label, and number of interpolations (`pairs`) and of their `steps`.
        path: The image, which is cropped and resized to the generator's size.
        folder: Folder of the files, which exists.

    Returns:
        The two files.

    Raises:
        UserError: The image cannot be read.
    """
    config, label = generator.config, options.label or 0
    generator = generator.to(local_device())
    image = _read(path, generator.image_shape(), config.data.background)
    low = config.pixel_min()
    target = to_float(torch.from_numpy(image[None]), low).to(generator.device)
    steps, what = projection.STEPS, f"{path.name} -> z on {generator.device.type}"
    with Progress(steps, what, "steps") as progress:
        found = projection.project(
            lambda z: generator.generate(z, label),
            config.latent,
            target,
            rng_seed=options.rng_seed,
            steps=steps,
            on_step=lambda: progress.add(1),
        )

    def levels(distance: float) -> str:
        """Return a distance in levels of 255."""
        return f"{distance * 255 / (1 - low):#.3g}"

    @torch.no_grad()
    def draw(z: torch.Tensor) -> tuple[np.ndarray, list[str]]:
        """Return images, uint8 (n, H, W, C), and their distances to the target."""
        images = generator.generate(z, label)
        distances = projection.distance(images, target).tolist()
        return to_uint8(images, low).cpu().numpy(), [levels(x) for x in distances]

    images, _ = draw(torch.stack([found.z, found.random_z]))
    distances = [levels(found.distance), levels(found.random_distance)]
    logger.info(
        f"projection  distance {distances[0]} of 255 levels; nearest of {found.random_count:,}"
        f" random samples: {distances[1]}"
    )
    notes = ["image", f"G(z)  {distances[0]}", f"random  {distances[1]}"]
    groups = [[Row(np.concatenate([image[None], images]), "", notes)], []]
    ends = generator.latents(options.pairs, options.rng_seed, "projection")
    z, t = found.z.cpu(), torch.linspace(0, 1, options.steps)
    for number, end in enumerate(ends, 1):
        images, distances = draw(slerp(z, end, t))
        groups[1].append(Row(images, f"to random\nlatent {number}", distances))
    given = f" with label {label}" if generator.classes else ""
    title = (
        f"{config.name}: projection of {path.name} to its latent z{given}, and great circles from"
        " there to random latents\nAbove each sample: distance to the image, the root mean squared"
        " difference of pixels at 3 resolutions, in levels of 255\n"
        f"random: the nearest of {found.random_count:,} random samples"
    )
    files = [folder / "projection.png", folder / "projection.npy"]
    Image.fromarray(labeled_rows(groups, title)).save(files[0])
    np.save(files[1], z.numpy())
    return files


def _read(path: Path, shape: Shape, background: str) -> np.ndarray:
    """Read an image and fit it to a shape: uint8 (H, W, C)."""
    height, width, channels = shape
    image = _read_rgb(path, background)
    if height == width:
        image = resize_and_crop(image, height)  # as training images
    else:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.array(image.convert("RGB" if channels == 3 else "L")).reshape(shape)


def _read_rgb(path: Path, background: str) -> Image.Image:
    try:
        # Without a list of formats, Pillow would run Ghostscript on a file with a program in it.
        with Image.open(path.expanduser(), formats=list(FORMATS)) as file:
            return to_rgb(file, background)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known format"
        raise UserError(f"--project={path}: cannot be read as an 8-bit image ({reason})") from error
