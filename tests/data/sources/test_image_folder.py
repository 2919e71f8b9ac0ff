import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganray.data.sources.image_folder import ImageFolder, JpegFolder
from ganray.data.writer import write_shards
from ganray.errors import UserError

RED, BLUE = (250, 5, 5), (5, 5, 250)


def paint(path: Path, color: object = RED, *, size: tuple[int, int] = (12, 8), mode: str = "RGB"):
    """Write an image, 12 wide and 8 tall."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # pyright: ignore[reportArgumentType]


def of(source: ImageFolder, name: str) -> int:
    return source.files.index(name)


def rejected(root: Path, match: str, **options: Any) -> str:
    with pytest.raises(UserError, match=match) as error:
        ImageFolder.open(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """30 blue cats and 30 red dogs."""
    for i in range(30):
        paint(tmp_path / f"pets/cat/{i}.png", BLUE)
        paint(tmp_path / f"pets/dog/deep/er/{i}.png")
    return tmp_path / "pets"


def test_folders_are_classes(pets: Path):
    (pets / "empty").mkdir()
    (pets / "notes.txt").write_text("no image")
    source = ImageFolder.open(pets)
    assert len(source) == 60
    assert source.class_names == ("cat", "dog")
    assert source.image_shape == (8, 12, 3)
    assert source.labels.dtype == source.ids.dtype == np.int64
    assert source.attributes.shape == (60, 0)
    for index in range(60):
        pixels = np.asarray(source.read(index))
        assert pixels.shape == (8, 12, 3)
        assert pixels[0, 0].tolist() == list((BLUE, RED)[source.labels[index]])


def test_a_flat_folder_has_no_classes(tmp_path: Path):
    for name in ("a.png", "b.JPG", "c.jpeg", "d.webp", "e.bmp"):
        paint(tmp_path / name)
    source = ImageFolder.open(tmp_path)
    assert (source.class_names, source.labels.tolist()) == ((), [-1] * 5)
    assert sorted(source.files) == ["a.png", "b.JPG", "c.jpeg", "d.webp", "e.bmp"]
    for index in range(5):
        near = np.abs(np.asarray(source.read(index), int) - RED)
        assert near.max() < 8  # three of the formats lose a little


def test_neighbors_are_of_several_classes_and_the_order_depends_on_names_only(
    pets: Path, tmp_path: Path
):
    source = ImageFolder.open(pets)
    assert 8 < np.count_nonzero(np.diff(source.labels)) < 52  # 1 if sorted, 30 on average
    assert [sorted(source.files)[i] for i in source.ids] == source.files
    pets.rename(tmp_path / "elsewhere")
    assert ImageFolder.open(tmp_path / "elsewhere").files == source.files


def test_a_tenth_is_held_out_and_stays_so_when_files_are_added(pets: Path):
    before = ImageFolder.open(pets)
    sides = dict(zip(before.files, before.split.tolist(), strict=True))
    assert set(sides.values()) == {0, 2}
    for i in range(30, 60):
        paint(pets / f"cat/{i}.png")
    after = ImageFolder.open(pets)
    assert len(after) == 90
    assert dict(zip(after.files, after.split.tolist(), strict=True)).items() >= sides.items()


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "VAL", "Test"), ("training", "validation")]
)
def test_split_folders_give_the_split(tmp_path: Path, names: tuple[str, ...]):
    for split in names:
        paint(tmp_path / split / "cat" / "1.png")
        paint(tmp_path / split / "dog" / "1.png")
    source = ImageFolder.open(tmp_path)
    assert source.class_names == ("cat", "dog")
    for number, split in enumerate(names):
        assert source.split[of(source, f"{split}/cat/1.png")] == number
        assert source.labels[of(source, f"{split}/dog/1.png")] == 1


def test_a_lone_train_folder_is_split_by_name_and_a_class_may_be_called_train(tmp_path: Path):
    for i in range(60):
        paint(tmp_path / f"alone/train/{('cat', 'dog')[i % 2]}/{i}.png")
        paint(tmp_path / f"traffic/train/{i}.png")
    paint(tmp_path / "traffic/ship/1.png")
    alone, traffic = ImageFolder.open(tmp_path / "alone"), ImageFolder.open(tmp_path / "traffic")
    assert (alone.class_names, set(alone.split)) == (("cat", "dog"), {0, 2})
    assert (traffic.class_names, set(traffic.split)) == (("ship", "train"), {0, 2})


def test_split_folders_may_be_flat(tmp_path: Path):
    paint(tmp_path / "train/1.png")
    paint(tmp_path / "test/1.png")
    source = ImageFolder.open(tmp_path)
    assert (source.class_names, sorted(source.split.tolist())) == ((), [0, 2])


def test_images_beside_class_folders_are_rejected(pets: Path):
    paint(pets / "stray.png")
    rejected(pets, r"stray\.png lies beside the class folders \(cat and so on\)")


@pytest.mark.filterwarnings("error")
def test_gray_alpha_and_palette_images_become_rgb(tmp_path: Path):
    paint(tmp_path / "1.png", 77, mode="L")
    paint(tmp_path / "2.png", (1, 2, 3, 128), mode="RGBA")
    paint(tmp_path / "3.png", (90, 20), mode="LA")
    palette = Image.new("P", (12, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "4.png", transparency=bytes([255, 100]))
    source = ImageFolder.open(tmp_path)
    white = [(77,) * 3, (127, 128, 128), (242,) * 3, (158, 158, 157)]
    for number, color in enumerate(white, start=1):
        pixels = np.asarray(source.read(of(source, f"{number}.png")), int)
        assert np.abs(pixels - color).max() <= 1
    assert source.notes[-1] == "3 with transparency, drawn over white"
    black = ImageFolder.open(tmp_path, background="black")
    assert np.asarray(black.read(of(black, "2.png")))[0, 0].tolist() == [1, 1, 2]
    assert black.fingerprint() != source.fingerprint()


def test_more_than_eight_bits_are_rejected_and_not_clipped(tmp_path: Path):
    Image.fromarray(np.full((8, 12), 40_000, np.uint16)).save(tmp_path / "deep.png")
    rejected(tmp_path, r"deep\.png: cannot be read as an 8-bit image \(has more than 8 bits")


def test_images_of_several_sizes_must_be_resized(tmp_path: Path):
    for i, size in enumerate([(12, 8), (8, 12), (30, 20)]):
        paint(tmp_path / f"{i}.png", size=size)
    source = ImageFolder.open(tmp_path)
    assert source.image_shape == (0, 0, 3)
    assert type(source) is ImageFolder
    assert source.read(of(source, "2.png")).size == (30, 20)
    manifest = write_shards(source, tmp_path / "set", size=8, processes=1)
    assert manifest.image_shape == (8, 8, 3)


def test_jpegs_of_one_size_are_kept_as_they_are(tmp_path: Path):
    for i in range(3):
        paint(tmp_path / f"in/{i}.jpg", (50 * i, 9, 9))
    paint(tmp_path / "in/gray.jpg", 9, mode="L")
    source = ImageFolder.open(tmp_path / "in")
    assert isinstance(source, JpegFolder)
    for index, name in enumerate(source.files):
        assert source.read_bytes(index) == (tmp_path / "in" / name).read_bytes()
    assert source.num_bytes().tolist() == [len(source.read_bytes(i)) for i in range(4)]
    manifest = write_shards(source, tmp_path / "set", encoding="jpeg", processes=1)
    assert sum(shard.num_bytes for shard in manifest.shards) == source.num_bytes().sum()


@pytest.mark.parametrize("odd", ["png", "called jpg", "size", "cmyk"])
def test_one_file_that_is_no_plain_jpeg_of_that_size_prevents_it(tmp_path: Path, odd: str):
    paint(tmp_path / "1.jpg")
    if odd == "png":
        paint(tmp_path / "2.png")
    elif odd == "called jpg":
        paint(tmp_path / "2.png")
        (tmp_path / "2.png").rename(tmp_path / "2.jpg")
    elif odd == "size":
        paint(tmp_path / "2.jpg", size=(8, 8))
    else:
        paint(tmp_path / "2.jpg", (0, 0, 0, 0), mode="CMYK")
    source = ImageFolder.open(tmp_path)
    assert not hasattr(source, "read_bytes")
    assert source.read(of(source, "1.jpg")).mode == "RGB"


@pytest.mark.parametrize(
    ("orientation", "corner", "shape"), [(3, (-1, -1), (8, 16)), (6, (0, -1), (16, 8))]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_photographs_are_turned_upright(
    tmp_path: Path, suffix: str, orientation: int, corner, shape
):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8] = 255  # the corner at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"photo.{suffix}", exif=exif)
    source = ImageFolder.open(tmp_path)
    assert source.image_shape == (*shape, 3)
    assert not hasattr(source, "read_bytes")
    upright = np.asarray(source.read(0))
    assert upright.shape == source.image_shape
    assert upright[corner].min() > 200
    assert np.median(upright) < 50


def test_a_damaged_file_is_named_with_the_way_out(pets: Path):
    source = ImageFolder.open(pets)
    path = pets / "cat" / "7.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cat/7\.png: cannot be read as an 8-bit image"):
        source.read(of(source, "cat/7.png"))
    path.write_bytes(b"no image")
    rejected(pets, r"cat/7\.png: cannot be read.*; replace or remove .*--data.bad_images skip")


def test_a_file_that_changed_its_size_is_named(pets: Path):
    source = ImageFolder.open(pets)
    paint(pets / "cat" / "7.png", size=(9, 9))
    with pytest.raises(ValueError, match=r"cat/7\.png: is 9x9 pixels now, but was 8x12"):
        source.read(of(source, "cat/7.png"))


def test_all_bad_images_are_listed_in_one_pass_or_skipped(
    pets: Path, ganray_log: pytest.LogCaptureFixture
):
    for name in ("cat/3.png", "dog/deep/er/5.png"):
        (pets / name).write_bytes(b"no image")
    (pets / "cat" / "lost.png").symlink_to("/nowhere.png")
    assert "3.png" in rejected(pets, "and 2 more cannot be read")
    assert [r.getMessage().partition(": cannot")[0] for r in ganray_log.records] == [
        str(pets / name) for name in ("cat/3.png", "cat/lost.png", "dog/deep/er/5.png")
    ]
    ganray_log.clear()
    assert len(ImageFolder.open(pets, bad_images="skip")) == 58
    assert len(ganray_log.records) == 3
    for name in ("cat/3.png", "cat/lost.png"):
        (pets / name).unlink()
    ganray_log.clear()
    assert len(ImageFolder.open(pets, bad_images="skip")) == 58
    assert "dog/deep/er/5.png: cannot be read" in ganray_log.text  # a single one, too


def test_the_content_and_not_the_name_must_be_of_a_known_format(tmp_path: Path):
    Image.new("RGB", (16, 16)).save(tmp_path / "1.ico")
    (tmp_path / "1.ico").rename(tmp_path / "1.png")
    rejected(tmp_path, r"1\.png: cannot be read")


def test_the_first_image_of_an_animation_is_read(tmp_path: Path):
    frames = [Image.new("RGB", (12, 8), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    source = ImageFolder.open(tmp_path)
    assert np.abs(np.asarray(source.read(0), int)[0, 0] - RED).max() < 8


def test_files_of_other_types_are_counted(tmp_path: Path):
    for name in ("1.png", "2.tif", "3.ppm", "4.jfif"):
        paint(tmp_path / "5.jpg" if name == "4.jfif" else tmp_path / name)
    (tmp_path / "5.jpg").rename(tmp_path / "4.jfif")
    for name in ("a.txt", "b.TXT", "c.mp4", "README"):
        (tmp_path / name).touch()
    source = ImageFolder.open(tmp_path)
    assert len(source) == 4
    assert source.notes[-1] == "skipped files: 2 .txt, 1 without suffix, 1 .mp4"


def test_no_folder_and_no_image(tmp_path: Path):
    rejected(tmp_path / "nowhere", "no such folder")
    rejected(tmp_path, r"contains no image; looked for \.png")


def test_links_are_followed_and_loops_and_devices_are_not(pets: Path, tmp_path: Path):
    paint(tmp_path / "elsewhere" / "1.png")
    (pets / "cat" / "file.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (pets / "cat" / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(pets / "cat" / "pipe.png")
    (tmp_path / "link").symlink_to(pets)
    source = ImageFolder.open(tmp_path / "link")
    assert len(source) == 62
    assert np.asarray(source.read(of(source, "cat/folder/1.png")))[0, 0].tolist() == list(RED)
    (pets / "cat" / "round").symlink_to(pets)
    assert str(pets / "cat" / "round") in rejected(pets, "a link to a folder that contains it")


def test_numbered_batches_are_not_classes(tmp_path: Path):
    for i in range(0, 60, 3):
        paint(tmp_path / f"ffhq/{i // 20 * 20:05d}/{i:05d}.png")
        paint(tmp_path / f"people/{i // 20:07d}/{i % 20:03d}.png")
        paint(tmp_path / f"digits/{i % 10}/{i}.png")
    batches = ImageFolder.open(tmp_path / "ffhq")
    assert batches.class_names == ()
    assert batches.notes[0] == "no classes: 00000 and so on are numbered batches"
    assert len(ImageFolder.open(tmp_path / "ffhq", labels="folder").class_names) == 3
    people = ImageFolder.open(tmp_path / "people")
    assert people.notes[0] == "classes: 3, the folders 0000000, 0000001, 0000002"
    assert len(ImageFolder.open(tmp_path / "digits").class_names) == 10
    paint(tmp_path / "lone/train/images/1.png")
    paint(tmp_path / "lone/val/images/2.png")
    lone = ImageFolder.open(tmp_path / "lone")
    assert lone.notes[:2] == (
        "no classes, as all are in the folder images",
        "splits: train 1, val 1",
    )
    assert ImageFolder.open(tmp_path / "lone", labels="folder").class_names == ("images",)
    assert ImageFolder.open(tmp_path / "digits", labels="none").class_names == ()


@pytest.mark.parametrize("packed", [False, True])
def test_stylegans_layout_with_its_labels(tmp_path: Path, packed: bool):
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(8)]
    for i, name in enumerate(names):
        paint(tmp_path / "set" / name, (RED, BLUE)[i % 2])
    labels = {"labels": [[name, i % 2] for i, name in enumerate(names)]}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(labels))
    root = tmp_path / "set"
    if packed:
        root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    source = pickle.loads(pickle.dumps(ImageFolder.open(root)))
    assert source.class_names == ("0", "1")
    assert source.notes[0] == "classes: 2 of dataset.json"
    assert not any("skipped" in note for note in source.notes)
    for index in range(8):
        color = (RED, BLUE)[source.labels[index]]
        assert np.asarray(source.read(index))[0, 0].tolist() == list(color)
    manifest = write_shards(source, tmp_path / "shards", processes=1)
    assert (manifest.num_images, manifest.class_names) == (8, ("0", "1"))
    assert ImageFolder.open(root, labels="folder").class_names == ("00000", "00001")
    assert ImageFolder.open(root, labels="folder").fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "must be"),
        ("[]", "must be"),
        ('{"labels": [["1.png", [0.1, 0.2]]]}', "not a whole number"),
        ('{"labels": [["other.png", 1]]}', "the label of 1.png is None"),
        ('{"labels": null}', "the label of 1.png is None"),
    ],
)
def test_labels_that_cannot_be_used_are_rejected(tmp_path: Path, text: str, match: str):
    paint(tmp_path / "1.png")
    rejected(tmp_path, "has no such file", labels="dataset.json")
    (tmp_path / "dataset.json").write_text(text)
    assert "--data.labels none" in rejected(tmp_path, match, labels="dataset.json")
    assert len(ImageFolder.open(tmp_path, labels="none")) == 1
    if "null" in text:  # StyleGAN's tools write it for sets without labels
        assert ImageFolder.open(tmp_path).class_names == ()


def test_odd_names_work(tmp_path: Path):
    odd = ["ü ö.png", "a\nb.png", "-rf.png", "%s {x}.png", os.fsdecode(b"\xff.png"), "q'\".png"]
    for name in odd:
        paint(tmp_path / "in" / "cl äss" / name)
    (tmp_path / "in" / "cl äss" / "._1.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "in" / ".cache").mkdir()
    paint(tmp_path / "in" / ".cache" / "1.png")
    source = pickle.loads(pickle.dumps(ImageFolder.open(tmp_path / "in")))
    assert sorted(source.files) == sorted(f"cl äss/{name}" for name in odd)
    source.fingerprint()
    source = ImageFolder.open(tmp_path / "in", labels="folder")
    assert write_shards(source, tmp_path / "set", processes=1).class_names == ("cl äss",)
    (tmp_path / "in" / "cl äss" / "a\nb.png").write_bytes(b"")
    rejected(tmp_path / "in", r"a\\nb\.png': cannot be read")


def test_the_fingerprint_follows_names_and_sizes(pets: Path, tmp_path: Path):
    prints = {ImageFolder.open(pets).fingerprint()}
    pets = pets.rename(tmp_path / "elsewhere")
    prints.add(ImageFolder.open(pets).fingerprint())
    assert len(prints) == 1
    with (pets / "cat" / "3.png").open("ab") as file:
        file.write(b"\0")
    prints.add(ImageFolder.open(pets).fingerprint())
    (pets / "cat" / "3.png").rename(pets / "dog" / "3.png")
    prints.add(ImageFolder.open(pets).fingerprint())
    assert len(prints) == 3
