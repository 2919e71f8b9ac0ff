"""Real photographs: converted, trained on and evaluated; what holds for any of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from ganray.commands import main
from ganray.data.integrity import verify_shards
from ganray.data.reader import ShardedDataset
from ganray.data.sources import open_source
from ganray.training import journal

PHOTOS = os.environ.get("GANRAY_TEST_PHOTOS", "")
SIZE = 32
MIN_PHOTOS, MAX_PHOTOS = 480, 1_000

pytestmark = pytest.mark.skipif(
    not PHOTOS, reason="no photographs; GANRAY_TEST_PHOTOS=FOLDER names a folder of them"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Return the photographs as shards."""
    source = open_source("folder", Path(PHOTOS))
    if len(source) < MIN_PHOTOS:
        pytest.skip(f"{PHOTOS} has {len(source)} photographs, and needs {MIN_PHOTOS}")
    folder = tmp_path_factory.mktemp("photos") / "shards"
    images = min(len(source), MAX_PHOTOS)
    main.shard(["folder", PHOTOS, "--out", str(folder), f"--size={SIZE}", f"--images={images}"])
    assert verify_shards(folder).num_images == images
    return ShardedDataset(folder)


def read(photos: ShardedDataset) -> np.ndarray:
    pixels = torch.empty((len(photos), *photos.image_shape), dtype=torch.uint8)
    photos.read_batch(np.arange(len(photos)), pixels)
    return pixels.numpy()


def test_shards_hold_the_photographs(photos: ShardedDataset):
    """They are those that torchvision's Resize and CenterCrop give."""
    source, pixels = open_source("folder", Path(PHOTOS)), read(photos)
    for index in range(0, len(photos), len(photos) // 50):
        expected = functional.center_crop(functional.resize(source.read(index), [SIZE]), [SIZE])
        np.testing.assert_array_equal(pixels[index], np.asarray(expected))
    flat = pixels.reshape(len(pixels), -1)
    assert np.median(flat.std(1)) > 5, "photographs are not of one color"
    assert len(np.unique(flat, axis=0)) > 0.9 * len(flat), "photographs are not all the same"


@pytest.mark.timeout(900)
def test_real_photographs_score_better_than_a_generator_that_has_barely_been_trained(
    photos: ShardedDataset, home: Path, tmp_path: Path
):
    pixels = np.random.default_rng(0).permutation(read(photos))
    count = len(pixels) // 3
    np.save(tmp_path / "held.npy", pixels[:count])
    np.save(tmp_path / "real.npy", pixels[count:])
    data = ["--data.source=numpy", f"--data.root={tmp_path / 'real.npy'}", f"--data.size={SIZE}"]
    training = ["--train.kimg=0.5", "--train.batch_size=25", "--train.log_every=0.1"]
    training += ["--network.width_G=8", "--network.width_D=8", "--launcher=torch", "--name=photos"]
    main.celeba(["cpu32", *data, *training, "--evaluation.samples=0"])
    losses = journal.history(home / "runs" / "photos", "loss/D")[1]
    assert len(losses) >= 5
    assert np.isfinite(losses).all()
    samples, real = (str(tmp_path / name) for name in ("held.npy", "real.npy"))
    out = ["--out", str(tmp_path / "held"), "--resamples=20"]
    main.evaluate(["--images", samples, "--against", real, *out])
    main.evaluate(["photos", "--out", str(tmp_path / "run"), "--resamples=20"])
    held, run = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("held", "run")
    )
    assert held["extractor"] == run["extractor"]
    assert held["diagnosis"]["kinds"] == []
    for name in ("coverage", "precision", "recall"):
        values = held["results"][name]
        assert values["estimate"]["value"] == pytest.approx(values["reference"], abs=0.15), name
    for name, sign in (("coverage", 1), ("frechet", -1), ("kid", -1)):
        values = [report["results"][name]["estimate"]["value"] for report in (held, run)]
        assert sign * values[0] > sign * values[1], name
