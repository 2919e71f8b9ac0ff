import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganray.data.sources.image_folder import ImageFolder, JpegFolder
from ganray.data.writer import write_shards

RED, BLUE = (250, 5, 5), (5, 5, 250)


def paint(path: Path, color: object = RED, *, size: tuple[int, int] = (12, 8), mode: str = "RGB"):
    """Write an image, 12 wide and 8 tall."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # pyright: ignore[reportArgumentType]


def of(source: ImageFolder, name: str) -> int:
    return source.files.index(name)


def rejected(root: Path, match: str) -> str:
    with pytest.raises(ValueError, match=match) as error:
        ImageFolder.open(root)
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


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_split_folders_give_the_split(tmp_path: Path, valid: str):
    for split in ("train", valid, "test"):
        paint(tmp_path / split / "cat" / "1.png")
        paint(tmp_path / split / "dog" / "1.png")
    source = ImageFolder.open(tmp_path)
    assert source.class_names == ("cat", "dog")
    for split, number in (("train", 0), (valid, 1), ("test", 2)):
        assert source.split[of(source, f"{split}/cat/1.png")] == number
        assert source.labels[of(source, f"{split}/dog/1.png")] == 1


def test_a_lone_train_folder_is_split_by_name_and_a_class_may_be_called_train(tmp_path: Path):
    for i in range(60):
        paint(tmp_path / f"alone/train/cat/{i}.png")
        paint(tmp_path / f"traffic/train/{i}.png")
    paint(tmp_path / "traffic/ship/1.png")
    alone, traffic = ImageFolder.open(tmp_path / "alone"), ImageFolder.open(tmp_path / "traffic")
    assert (alone.class_names, set(alone.split)) == (("cat",), {0, 2})
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
def test_grey_alpha_and_palette_images_become_rgb(tmp_path: Path):
    paint(tmp_path / "1.png", 77, mode="L")
    paint(tmp_path / "2.png", (1, 2, 3, 128), mode="RGBA")
    paint(tmp_path / "3.png", (90, 20), mode="LA")
    palette = Image.new("P", (12, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "4.png", transparency=bytes([255, 100]))
    source = ImageFolder.open(tmp_path)
    expected = [(77,) * 3, (1, 2, 3), (90,) * 3, (9, 8, 7)]
    for number, color in enumerate(expected, start=1):
        pixels = np.asarray(source.read(of(source, f"{number}.png")))
        np.testing.assert_array_equal(pixels, np.broadcast_to(color, (8, 12, 3)))


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
    paint(tmp_path / "in/grey.jpg", 9, mode="L")
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
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, corner, shape):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8] = 255  # the corner at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
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
    with pytest.raises(ValueError, match=r"cat/7\.png: cannot be read.*; replace or remove it"):
        source.read(of(source, "cat/7.png"))
    path.write_bytes(b"no image")
    rejected(pets, r"cat/7\.png: cannot be read.*; replace or remove it")


def test_a_file_that_changed_its_size_is_named(pets: Path):
    source = ImageFolder.open(pets)
    paint(pets / "cat" / "7.png", size=(9, 9))
    with pytest.raises(ValueError, match=r"cat/7\.png: is 9x9 pixels now, but was 8x12"):
        source.read(of(source, "cat/7.png"))


def test_the_content_and_not_the_name_must_be_of_a_known_format(tmp_path: Path):
    Image.new("RGB", (12, 8)).save(tmp_path / "1.tiff")
    (tmp_path / "1.tiff").rename(tmp_path / "1.png")
    rejected(tmp_path, r"1\.png: cannot be read")


def test_no_folder_and_no_image(tmp_path: Path):
    rejected(tmp_path / "nowhere", "no such folder")
    rejected(tmp_path, r"contains no image; looked for \.png")


def test_links_that_lead_out_are_rejected(pets: Path, tmp_path: Path):
    paint(tmp_path / "secret.png")
    link = pets / "cat" / "link.png"
    for target in (tmp_path / "secret.png", tmp_path / "nothing.png"):
        link.symlink_to(target)
        assert str(link) in rejected(pets, "a link that leads out of the folder, nowhere")
        link.unlink()
    for target in (tmp_path, pets):
        (pets / "cat" / "round").symlink_to(target)
        rejected(pets, "or to a folder")
        (pets / "cat" / "round").unlink()


def test_links_inside_and_a_link_to_the_whole_folder_are_followed(pets: Path, tmp_path: Path):
    (pets / "cat" / "link.png").symlink_to(pets / "cat" / "1.png")
    (tmp_path / "link").symlink_to(pets)
    source = ImageFolder.open(tmp_path / "link")
    assert len(source) == 61
    assert np.asarray(source.read(of(source, "cat/link.png")))[0, 0].tolist() == list(BLUE)


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
