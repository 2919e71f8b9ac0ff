import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ganray.data import sources
from ganray.data.sources import NAMES, open_source
from ganray.data.sources.celeba import CelebA
from tests.data.sources.test_cifar10 import BINARY, write_layout
from tests.data.sources.test_mnist import write_set


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, celeba_zip: Path) -> dict[str, Path | None]:
    """Return the path of a small set for each source."""
    root = tmp_path_factory.mktemp("places")
    write_set(write_set(root, "MNIST"), "FashionMNIST")
    write_layout(root, BINARY)
    (root / "images").mkdir()
    Image.new("RGB", (4, 4)).save(root / "images" / "1.png")
    with h5py.File(root / "faces.h5py", "w") as file:
        file["img_align_celeba/0.jpg"] = np.zeros((4, 4, 3), np.uint8)
    with h5py.File(root / "array.h5", "w") as file:
        file["imgs"] = np.zeros((5, 4, 4, 3), np.uint8)
    np.savez(root / "array.npz", np.zeros((5, 4, 4, 3), np.uint8), np.arange(5))
    return {
        "celeba": celeba_zip,
        "mnist": root,
        "fashion-mnist": root,
        "stacked-mnist": root,
        "cifar10": root,
        "digits": None,
        "folder": root / "images",
        "hdf5": root / "array.h5",
        "numpy": root / "array.npz",
        "source-text": root / "faces.h5py",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_opened_by_its_name(places: dict[str, Path | None], name: str):
    source = open_source(name, places[name])
    assert source.name == name
    count, shape = len(source), source.image_shape
    pixels = np.asarray(source.read(count - 1))
    assert pixels.dtype == np.uint8
    assert pixels.reshape(shape).shape == shape
    assert [source.ids.shape, source.labels.shape, source.split.shape] == [(count,)] * 3
    assert [source.ids.dtype, source.labels.dtype] == [np.int64] * 2
    assert [source.attributes.dtype, source.split.dtype] == [np.uint8] * 2
    assert source.attributes.shape == (count, len(source.attribute_names))
    assert len(np.unique(source.ids)) == count
    assert set(source.split) <= {0, 1, 2}
    assert source.labels.max() < max(len(source.class_names), 1)
    assert source.labels.min() == (0 if source.class_names else -1)
    assert source.fingerprint() == open_source(name, places[name]).fingerprint()


def test_options_reach_the_source(places: dict[str, Path | None], monkeypatch: pytest.MonkeyPatch):
    root = places["mnist"]
    one = open_source("stacked-mnist", root, rng_seed=1, count=5)
    assert len(one) == 5 + 26_000
    assert one.fingerprint() != open_source("stacked-mnist", root, count=5).fingerprint()
    monkeypatch.setattr(CelebA, "download", lambda path: ("downloaded", path))
    assert open_source("celeba", root, download=True) == ("downloaded", root)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar", {}, r"source='cifar' is unknown; use one of celeba, mnist, .*, source-text$"),
        ("mnist", {"count": 5}, "count=5: only stacked-mnist"),
        ("stacked-mnist", {"count": 0}, "count from 1 to"),
        ("folder", {"download": True}, "folder cannot be fetched, only celeba, mnist"),
        ("source-text", {"download": True}, "source-text cannot be fetched"),
        ("folder", {"path": None}, "folder needs a path: any images: PATH is"),
    ],
)
def test_images_that_do_not_fit_are_rejected(
    places: dict[str, Path | None], name: str, options: dict, message: str
):
    path = options.pop("path", places.get(name))
    with pytest.raises(ValueError, match=message):
        open_source(name, path, **options)


def test_the_table_imports_no_source_and_a_source_no_torch():
    code = (
        "import sys; from ganray.data.sources import NAMES, open_source;"
        "heavy = {'torch', 'torchvision', 'sklearn', 'h5py', 'PIL', 'numpy'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys();"
        "import ganray.data.sources.mnist, ganray.data.sources.digits;"
        "import ganray.data.sources.image_folder, ganray.data.sources.source_text;"
        "import ganray.data.sources.celeba, ganray.data.sources.hdf5_array;"
        "import ganray.data.sources.cifar10, ganray.data.sources.numpy_array;"
        "assert not {'torch', 'torchvision', 'sklearn'} & sys.modules.keys()"
    )
    root = Path(sources.__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
