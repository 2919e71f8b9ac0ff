import pickle
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ganray.data.sources.celeba import IMAGES, CelebA
from ganray.data.writer import write_shards


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


def test_capitals_in_file_names_do_not_matter(folder: Path):
    expected = CelebA.open(folder)
    pixels = np.asarray(expected.read(1))
    for path in (folder / IMAGES).iterdir():
        path.rename(path.with_suffix(".JPG"))
    for_windows = CelebA.open(folder, missing="error")
    np.testing.assert_array_equal(np.asarray(for_windows.read(1)), pixels)
    for path in folder.glob("list_*.txt"):
        path.write_text(path.read_text().replace(".jpg", ".JPG"))
    for listed in (CelebA.open(folder, missing="error"), for_windows):
        assert listed.files == ["000001.JPG", "000002.JPG", "000003.JPG"]
        np.testing.assert_array_equal(listed.attributes, expected.attributes)
        np.testing.assert_array_equal(listed.split, expected.split)


def test_a_pickled_source_reads_on_without_the_handle(celeba_zip: Path):
    source = CelebA.open(celeba_zip)
    image = source.read(3)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.images.tree._handle is None
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
    shutil.rmtree(folder / "img_align_celeba")
    (folder / "img_align_celeba").mkdir()
    (folder / "face.png").touch()
    error = rejected(folder)
    assert "contains no CelebA, which are images such as img_align_celeba/000001.jpg" in error
    assert "found 2 .txt, 1 .png; get img_align_celeba.zip," in error
    assert error.endswith("or for other images use --data.source folder")
    with h5py.File(tmp_path / "celeba.h5", "w"):
        pass
    assert "use --data.source hdf5" in rejected(tmp_path / "celeba.h5")


def as_csv(path: Path, header: str):
    """Turn a list into Kaggle's form: no count, a header, commas, a byte-order mark, CRLF."""
    rows = [",".join(line.split()) for line in path.read_text().splitlines()]
    rows = rows[2:] if "attr" in path.name else rows
    text = "\r\n".join([header, *rows]) + "\r\n"
    path.with_suffix(".csv").write_text(text, "utf-8-sig", newline="")
    path.unlink()


def to_kaggle(folder: Path):
    names = (folder / "list_attr_celeba.txt").read_text().splitlines()[1]
    as_csv(folder / "list_attr_celeba.txt", ",".join(["image_id", *names.split()]))
    as_csv(folder / "list_eval_partition.txt", "image_id,partition")
    (folder / "img_align_celeba").rename(folder / "inner")
    (folder / "img_align_celeba").mkdir()
    (folder / "inner").rename(folder / "img_align_celeba" / "img_align_celeba")


def to_kaggle_zip(folder: Path):
    to_kaggle(folder)
    shutil.make_archive(str(folder.parent / "archive"), "zip", folder)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder.parent / "archive.zip").rename(folder / "archive.zip")


def to_official_tree(folder: Path):
    for name, inside in (("list_attr", "Anno"), ("list_eval", "Eval"), ("img_align", "Img/a/b")):
        (folder / inside).mkdir(parents=True)
        (path,) = folder.glob(f"{name}*")
        path.rename(folder / inside / path.name)
    # The unaligned images have the same names and are as many.
    shutil.copytree(folder / "Img/a/b/img_align_celeba", folder / "Img" / "img_celeba")


def zipped_by_macos(folder: Path):
    with zipfile.ZipFile(folder / "celeba.zip", "w") as archive:
        for number in (1, 2, 3):
            name = f"img_align_celeba/{number:06d}.jpg"
            archive.write(folder / name, f"some/folder/{name}")
            archive.writestr(f"__MACOSX/img_align_celeba/._{number:06d}.jpg", b"no image")
    shutil.rmtree(folder / "img_align_celeba")
    (folder / "._list_attr_celeba.txt").write_bytes(b"no list")


def beside_a_bad_zip(folder: Path):
    (folder / "img_align_celeba.zip").write_bytes(b"PK what a broken download leaves")


def with_tabs(folder: Path):
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        text = (folder / name).read_text().replace(" ", "\t")
        (folder / name).write_text(text, "utf-8-sig", newline="\r\n")


def as_excel(folder: Path):
    """Quote the values, and number the file as a browser does."""
    path = folder / "list_attr_celeba.txt"
    rows = path.read_text().splitlines()[1:]
    rows[0] = f"image_id {rows[0]}"
    quoted = [",".join(f'"{value}"' for value in row.split()) for row in rows]
    (folder / "LIST_ATTR_CELEBA (1).csv").write_text("\n".join(quoted))
    path.unlink()


def as_powershell(folder: Path):
    path = folder / "list_attr_celeba.txt"
    path.write_text(path.read_text(), "utf-16", newline="\r\n")


@pytest.mark.parametrize(
    "change",
    [
        as_excel,
        as_powershell,
        to_kaggle,
        to_kaggle_zip,
        to_official_tree,
        zipped_by_macos,
        beside_a_bad_zip,
        with_tabs,
        lambda folder: folder.rename(folder.with_name("deep")).rename(folder.parent / "celeba"),
    ],
)
def test_celeba_is_found_as_it_lies_about(folder: Path, change: Callable[[Path], None]):
    expected = CelebA.open(folder)
    pixels = np.asarray(expected.read(2))
    change(folder)
    for root in (folder, folder.parent):
        source = CelebA.open(root)
        assert source.files == expected.files
        assert source.attribute_names == expected.attribute_names
        np.testing.assert_array_equal(source.attributes, expected.attributes)
        np.testing.assert_array_equal(source.split, expected.split)
        np.testing.assert_array_equal(np.asarray(source.read(2)), pixels)
        told = change is beside_a_bad_zip
        assert [("not a complete zip file" in note) for note in source.notes] == [True] * told


def test_a_zip_file_itself_may_be_given(folder: Path):
    to_kaggle_zip(folder)
    assert len(CelebA.open(folder / "archive.zip")) == 3


def test_aligned_images_are_taken_even_if_there_are_more_others(folder: Path):
    (folder / "img_celeba").mkdir()
    for number in range(1, 9):
        shutil.copy(
            folder / "img_align_celeba" / "000001.jpg", folder / "img_celeba" / f"{number:06d}.jpg"
        )
    source = CelebA.open(folder)
    assert (len(source), source.images.name) == (3, "img_align_celeba/")


def test_what_is_missing_is_said_or_refused(folder: Path):
    assert CelebA.open(folder).notes == ()
    CelebA.open(folder, missing="error")
    (folder / "img_align_celeba" / "000002.jpg").unlink()
    source = CelebA.open(folder)
    assert source.ids.tolist() == [1, 3]
    assert source.attributes[1].tolist()[:3] == [1, 1, 0]
    assert source.notes == ("2 of the 3 listed images; no 000002.jpg",)
    shutil.copy(
        folder / "img_align_celeba" / "000001.jpg", folder / "img_align_celeba" / "000009.jpg"
    )
    assert len(CelebA.open(folder)) == 2
    assert CelebA.open(folder).notes[1] == "images without attributes, left out: 1"
    with pytest.raises(ValueError, match=r"2 of the 3 listed images; no 000002\.jpg"):
        CelebA.open(folder, missing="error")


def test_without_lists_there_are_no_attributes_and_only_training_images(folder: Path):
    (folder / "list_attr_celeba.txt").unlink()
    (folder / "list_eval_partition.txt").unlink()
    source = CelebA.open(folder)
    assert source.attributes.shape == (3, 0)
    assert source.split.tolist() == [0, 0, 0]
    assert [note.partition(":")[0] for note in source.notes] == [
        "no attributes",
        "all are training images",
    ]
    assert write_shards(source, folder.parent / "set", size=16, processes=1).num_images == 3


def test_images_in_other_folders_are_counted(folder: Path):
    few, more = folder / "few", folder / "more"
    few.mkdir()
    (folder / IMAGES / "000001.jpg").rename(few / "000001.jpg")
    (folder / IMAGES).rename(more)
    source = CelebA.open(folder)
    assert len(source) == 2
    assert f"only the images in {more} are taken; other folders hold 1 more" in source.notes[0]


def test_lists_of_other_images_are_rejected(folder: Path):
    for number in (1, 2, 3):
        path = folder / "img_align_celeba" / f"{number:06d}.jpg"
        path.rename(path.with_name(f"9{number}.jpg"))
    assert "none of its 3 images is listed in" in rejected(folder)


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
        ("000002.jpg -1", "000002.jpg -7", "row 2 of the images is not a file name and 40 values"),
        ("000002.jpg -1", "000002.jpg", "row 2 of the images is not a file name and 40 values"),
    ],
)
def test_an_attribute_file_that_is_not_celebas(folder: Path, old: str, new: str, message: str):
    path = folder / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    assert message in rejected(folder)


def test_an_empty_attribute_file(folder: Path):
    (folder / "list_attr_celeba.txt").write_text("")
    assert "unknown header" in rejected(folder)


@pytest.mark.parametrize(
    "text", ["000001.jpg 0\n000002.jpg 0\n", "000001.jpg 0\n" * 3, "1 2 3\n", ""]
)
def test_a_partition_file_that_does_not_match(folder: Path, text: str):
    (folder / "list_eval_partition.txt").write_text(text)
    assert "must name each image once, with 0, 1 or 2" in rejected(folder)


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
