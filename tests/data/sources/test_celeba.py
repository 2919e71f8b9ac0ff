import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganray.data.sources.celeba import FOLDER, CelebA


@pytest.fixture
def folder(celeba_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil: the first three images, and files of text to match."""
    copy = tmp_path / "celeba"
    (copy / "img_align_celeba").mkdir(parents=True)
    for number in (1, 2, 3):
        name = f"img_align_celeba/{number:06d}.jpg"
        shutil.copy(celeba_folder / name, copy / name)
    lines = (celeba_folder / "list_attr_celeba.txt").read_text().splitlines()
    (copy / "list_attr_celeba.txt").write_text("\n".join(["3", *lines[1:5]]))
    lines = (celeba_folder / "list_eval_partition.txt").read_text().splitlines()
    (copy / "list_eval_partition.txt").write_text("\n".join(lines[:3]))
    return copy


def rejected(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"celeba|nowhere|copy") as error:
        CelebA.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_zip_and_folder_give_the_same_images_and_labels(celeba_zip: Path, celeba_folder: Path):
    packed, unpacked = CelebA.open(celeba_zip), CelebA.open(celeba_folder)
    assert len(packed) == len(unpacked) == 150
    for index in (0, 77, 149):
        np.testing.assert_array_equal(
            np.asarray(packed.read(index)), np.asarray(unpacked.read(index))
        )
    np.testing.assert_array_equal(packed.attributes, unpacked.attributes)
    np.testing.assert_array_equal(packed.split, unpacked.split)


def test_what_is_read_is_what_the_files_say(celeba_folder: Path):
    source = CelebA.open(celeba_folder)
    with Image.open(celeba_folder / "img_align_celeba" / "000005.jpg") as image:
        pixels = np.asarray(source.read(4))
        np.testing.assert_array_equal(pixels, np.asarray(image))
    assert pixels.shape == source.image_shape == (218, 178, 3)
    assert pixels.dtype == np.uint8
    assert source.ids.tolist() == list(range(1, 151))
    assert source.attributes[4].tolist() == [1, 0, 1, *[0] * 37]  # 5 in binary, lowest bit first
    assert source.attribute_names[:2] == ("Attribute_0", "Attribute_1")
    assert np.bincount(source.split).tolist() == [100, 30, 20]


def test_torchvisions_root_and_a_missing_partition_file_are_fine(folder: Path):
    (folder / "list_eval_partition.txt").unlink()
    source = CelebA.open(folder.parent)
    assert source.split.tolist() == [0, 0, 0]


def test_a_pickled_source_reads_on_without_the_handle(celeba_zip: Path):
    source = CelebA.open(celeba_zip)
    image = source.read(3)
    copy = pickle.loads(pickle.dumps(source))
    assert copy._archive is None
    np.testing.assert_array_equal(np.asarray(copy.read(3)), np.asarray(image))


def test_the_fingerprint_follows_the_data(folder: Path, celeba_zip: Path):
    fingerprint = CelebA.open(folder).fingerprint()
    assert CelebA.open(folder).fingerprint() == fingerprint
    with (folder / "img_align_celeba" / "000002.jpg").open("ab") as file:
        file.write(b"\0")
    changed = CelebA.open(folder).fingerprint()
    attributes = folder / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("-1", " 1", 1))
    assert len({fingerprint, changed, CelebA.open(folder).fingerprint()}) == 3
    assert CelebA.open(celeba_zip).fingerprint() == CelebA.open(celeba_zip).fingerprint()


def test_missing_things_are_named(folder: Path, tmp_path: Path):
    assert "no such folder" in rejected(tmp_path / "nowhere")
    assert "contains neither img_align_celeba.zip nor img_align_celeba/" in rejected(
        folder / FOLDER
    )
    (folder / "list_attr_celeba.txt").rename(folder / "other.txt")
    assert "list_attr_celeba.txt: missing" in rejected(folder)
    (folder / "other.txt").rename(folder / "list_attr_celeba.txt")
    shutil.rmtree(folder / "img_align_celeba")
    (folder / "img_align_celeba").mkdir()
    assert "contains no .jpg file" in rejected(folder)


def test_a_truncated_zip_is_rejected(celeba_zip: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(celeba_zip, copy)
    archive = copy / "img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-1000])
    assert "img_align_celeba.zip: not a complete zip file" in rejected(copy)


def test_a_damaged_file_in_the_zip_is_named(celeba_zip: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(celeba_zip, copy)
    archive = copy / "img_align_celeba.zip"
    data = bytearray(archive.read_bytes())
    data[1000:1100] = bytes(100)  # within the first picture
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"000001\.jpg cannot be decoded"):
        CelebA.open(copy).read(0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\n", "4\n", "says 4 images but has 3 rows"),
        ("3\n", "faces\n", "unknown header"),
        ("Attribute_7 ", "", "unknown header"),
        ("000002.jpg -1", "000002.jpg -7", "line 4 is not a file name and 40 values"),
        ("000002.jpg -1", "000002.jpg", "line 4 is not a file name and 40 values"),
    ],
)
def test_an_attribute_file_that_is_not_celebas(folder: Path, old: str, new: str, message: str):
    path = folder / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    assert message in rejected(folder)


def test_an_empty_attribute_file(folder: Path):
    (folder / "list_attr_celeba.txt").write_text("")
    assert "unknown header" in rejected(folder)


def test_images_and_attributes_must_match(folder: Path):
    (folder / "img_align_celeba" / "000002.jpg").unlink()
    assert "2 images but list_attr_celeba.txt lists 3 (first that differs: 000002.jpg)" in rejected(
        folder
    )


@pytest.mark.parametrize("text", ["000001.jpg 0\n000002.jpg 0\n", "000001.jpg 0\n" * 3, "1 2 3\n"])
def test_a_partition_file_that_does_not_match(folder: Path, text: str):
    (folder / "list_eval_partition.txt").write_text(text)
    assert "must name the 3 images" in rejected(folder)


def test_an_image_of_another_size_or_no_image_is_named(folder: Path):
    source = CelebA.open(folder)
    Image.new("RGB", (178, 200)).save(folder / "img_align_celeba" / "000002.jpg")
    with pytest.raises(ValueError, match=r"000002\.jpg is 200x178 pixels, not 218x178"):
        source.read(1)
    (folder / "img_align_celeba" / "000003.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000003\.jpg cannot be decoded"):
        source.read(2)


def test_a_download_that_fails_says_how_to_do_it_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def no_network(root: str, download: bool):
        raise RuntimeError(f"quota of Google Drive\nis spent {root} {download}")

    fake = types.SimpleNamespace(CelebA=no_network)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=fake))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    with pytest.raises(ValueError, match=r"quota of Google Drive is spent.*in a browser") as error:
        CelebA.download(tmp_path)
    assert "\n" not in str(error.value)


def test_a_download_that_arrives_is_opened(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
):
    def download(root: str, download: bool):
        assert download
        shutil.copytree(folder, Path(root) / "celeba")

    fake = types.SimpleNamespace(CelebA=download)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=fake))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    assert len(CelebA.download(tmp_path / "root")) == 3
