import io
import json
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from ganray.data.sources import faces
from ganray.data.sources.faces import ATTRIBUTE_NAMES, DRAWN_ATTRIBUTES, draw, write_celeba
from ganray.data.sources.faces.painters import paint
from ganray.data.sources.faces.traits import (
    BALD,
    BEARD,
    BLACK,
    BLOND,
    BROWN,
    GOATEE,
    HAIRS,
    LIPSTICKS,
    LONG,
    SHAVEN,
    STUBBLE,
    SUIT,
    RandomStream,
    attributes_of,
    draw_traits,
    mix,
)

MANY = 2_000


@pytest.fixture(scope="module")
def traits():
    return draw_traits(7, np.arange(MANY))


@pytest.fixture(scope="module")
def facts(traits):
    """Attribute name -> bool (MANY,)."""
    return dict(zip(ATTRIBUTE_NAMES, attributes_of(traits).T == 1, strict=True))


def paint_with(changes, indices=range(4), rng_seed=3):
    """The same faces with some traits set to a value: float32 images (n, 218, 178, 3)."""
    traits = draw_traits(rng_seed, np.array(indices))
    plain = {"hat": False, "glasses": False, "sunglasses": False, "blurry": False, "facial": 0}
    for name, value in (plain | {"mustache": False} | changes).items():
        was = getattr(traits, name)
        setattr(traits, name, np.full_like(was, value))
    return paint(traits).astype(np.float32)


def hair_luminance(color):
    traits = {"length": LONG, "haired": True, "bangs": False, "puff": 6.0, "hair_color": color}
    hair = np.array(HAIRS[color], np.float32).reshape(3, 1, 1)
    images = paint_with(traits | {"hair_dark": hair * 0.62, "hair_light": hair * 1.18})
    return images[:, 48:58, 80:100].mean()


# A face is a pure function of its number.


def test_a_face_alone_is_the_face_in_any_batch():
    images, attributes = draw(5, np.arange(40))
    for i in (0, 17, 39):
        image, attribute = draw(5, np.array([i]))
        np.testing.assert_array_equal(image[0], images[i])
        np.testing.assert_array_equal(attribute[0], attributes[i])
    shuffled = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(draw(5, shuffled)[0], images[shuffled])


def test_another_seed_or_number_is_another_face():
    images = np.concatenate([draw(1, np.arange(6))[0], draw(2, np.arange(6))[0]])
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12


def test_large_indices_and_any_integer_seed_are_valid():
    images, _ = draw(-(2**70), np.array([0, 2**40]))
    assert (images[0] != images[1]).any()
    assert draw(0, np.arange(0))[0].shape == (0, 218, 178, 3)


def test_splitmix_matches_its_published_stream():
    steps = np.arange(1, 4, dtype=np.uint64) * np.uint64(RandomStream.STEP)
    stream = mix(np.uint64(1234567) + steps)
    assert stream.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_shapes_and_types():
    images, attributes = draw(0, np.array([3, 1, 2]))
    assert images.shape == (3, 218, 178, 3)
    assert images.dtype == np.uint8
    assert attributes.shape == (3, 40)
    assert attributes.dtype == np.int8
    assert set(np.unique(attributes)) == {-1, 1}


# Attributes obey reason, and the pictures obey them.


def test_names_are_celebas():
    assert len(ATTRIBUTE_NAMES) == 40
    assert ATTRIBUTE_NAMES[::13] == ("5_o_Clock_Shadow", "Chubby", "Pale_Skin", "Young")
    assert set(DRAWN_ATTRIBUTES) < set(ATTRIBUTE_NAMES)


def test_what_is_drawn_varies_and_what_is_not_is_never_claimed(facts):
    for name in ATTRIBUTE_NAMES:
        share = facts[name].mean()
        if name in DRAWN_ATTRIBUTES:
            assert 0.005 < share < 0.995, (name, share)
        else:
            assert share == 0, name


def test_hair_is_one_thing_at_a_time(facts):
    colors = sum(facts[f"{c}_Hair"].astype(int) for c in ("Black", "Blond", "Brown", "Gray"))
    texture = facts["Wavy_Hair"].astype(int) + facts["Straight_Hair"]
    assert colors.max() == 1
    assert texture.max() == 1
    assert not (colors > texture).any(), "a color of hair that is not there"
    assert not texture[facts["Bald"]].any()
    assert not (facts["Bangs"] & (facts["Wearing_Hat"] | facts["Receding_Hairline"])).any()
    assert not (facts["Bald"] & facts["Wearing_Hat"]).any()


def test_no_beard_means_none_of_any_kind(facts):
    some = facts["5_o_Clock_Shadow"] | facts["Goatee"] | facts["Mustache"]
    np.testing.assert_array_equal(facts["No_Beard"], ~some)
    assert facts["Male"][some].all()
    assert not facts["Wearing_Lipstick"][facts["Male"]].any()
    assert facts["Wearing_Lipstick"][facts["Heavy_Makeup"]].all()


@pytest.mark.parametrize(("lighter", "darker"), [(BLOND, BROWN), (BROWN, BLACK)])
def test_hair_has_its_color(lighter, darker):
    assert hair_luminance(lighter) > hair_luminance(darker) + 15


def test_lipstick_is_redder_than_lips():
    red = np.array(LIPSTICKS[0], np.float32).reshape(3, 1, 1)
    bare, made_up = (paint_with(c) for c in ({"open": False}, {"open": False, "lip_color": red}))
    lips = np.s_[:, 150:160, 82:96]
    redness = [image[lips][..., 0].mean() - image[lips][..., 1].mean() for image in (bare, made_up)]
    assert redness[1] > redness[0] + 15


@pytest.mark.parametrize(
    ("trait", "values", "region"),
    [
        ("glasses", (False, True), np.s_[95:130, 45:135]),
        ("hat", (False, True), np.s_[30:100, 30:148]),
        ("bangs", (False, True), None),
        ("curve", (-1.0, 7.0), np.s_[140:172, 60:118]),
        ("gap", (1.2, 7.0), np.s_[140:178, 60:118]),
        ("facial", (SHAVEN, BEARD), np.s_[130:190, 50:128]),
        ("facial", (SHAVEN, STUBBLE), np.s_[130:190, 50:128]),
        ("facial", (SHAVEN, GOATEE), np.s_[155:186, 72:108]),
        ("mustache", (False, True), np.s_[140:156, 70:108]),
        ("earrings", (False, True), np.s_[120:160, 25:152]),
        ("necktie", (False, True), np.s_[190:218, 78:100]),
        ("eye_h", (2.3, 5.0), np.s_[100:124, 55:122]),
        ("brow_h", (1.8, 3.7), np.s_[80:112, 48:130]),
        ("rosy", (False, True), np.s_[115:155, 50:128]),
        ("old", (False, True), np.s_[74:170, 50:128]),
    ],
)
def test_a_trait_changes_its_place_and_little_else(trait, values, region):
    common = {"outfit": SUIT, "length": BALD, "haired": False}
    if trait == "bangs":  # a derived look: the hairline is what the painter sees
        common = {"length": LONG, "haired": True, "sweep": 0.0, "peak": 0.0}
        trait, values, region = "hairline", (40.0, 20.0), np.s_[60:108, 40:138]
    before, after = (paint_with(common | {trait: value}) for value in values)
    change = np.abs(after - before).max(axis=-1)
    assert (change[:, *region] > 20).sum(axis=(1, 2)).min() > 12, "hardly to be seen"
    change[:, *(slice(max(side.start - 30, 0), side.stop + 30) for side in region)] = 0
    assert change.max() == 0


def test_eyes_are_where_celeba_puts_them():
    images = paint_with({"length": BALD, "haired": False, "narrow": False, "eye_h": 5.0})
    gray = images.mean(axis=-1)
    for x in (70, 108):
        eye, cheek = gray[:, 106:117, x - 6 : x + 7], gray[:, 124:132, x - 6 : x + 7]
        contrast = eye.max(axis=(1, 2)) - eye.min(axis=(1, 2))
        assert (contrast > 100).all()  # white against pupil
        assert (contrast > 2 * (cheek.max(axis=(1, 2)) - cheek.min(axis=(1, 2)))).all()


# On disk it is CelebA.


def killed(*_):
    raise KeyboardInterrupt


def read(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("celeba")
    write_celeba(folder, 30, rng_seed=11, processes=1)
    return folder


def test_layout_is_celebas(written):
    assert set(read(written)) == {
        "ganray-faces.json",
        "img_align_celeba.zip",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    }
    images, attributes = draw(11, np.arange(30))
    with zipfile.ZipFile(written / "img_align_celeba.zip") as archive:
        assert archive.testzip() is None
        names = [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 31)]
        assert archive.namelist() == names
        assert {e.compress_type for e in archive.infolist()} == {zipfile.ZIP_STORED}
        with Image.open(io.BytesIO(archive.read(names[20]))) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (178, 218), "RGB")
            off = np.abs(np.asarray(picture, np.float32) - images[20]).mean()
    assert off < 6
    count, header, *lines = (written / "list_attr_celeba.txt").read_text().splitlines()
    assert count == "30"
    assert header.split() == list(ATTRIBUTE_NAMES)
    assert len(lines) == 30
    assert lines[20].startswith("000021.jpg ")
    assert len(lines[20]) == len("000021.jpg") + 40 * len(" -1")
    np.testing.assert_array_equal([int(x) for x in lines[20].split()[1:]], attributes[20])


def test_partition_has_celebas_proportions(written):
    lines = (written / "list_eval_partition.txt").read_text().splitlines()
    names, parts = zip(*(line.split() for line in lines), strict=True)
    assert names[0] == "000001.jpg"
    assert list(parts) == sorted(parts)
    assert [parts.count(p) for p in "012"] == [24, 3, 3]


def test_bytes_do_not_depend_on_the_processes(written, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "_TASK", 8)
    drawn = []
    write_celeba(tmp_path, 30, rng_seed=11, processes=2, progress=drawn.append)
    assert drawn == [8, 8, 8, 6]
    assert read(tmp_path) == read(written)


def test_a_second_call_does_nothing(written, monkeypatch):
    monkeypatch.setattr(faces, "_write_images", None)
    before = read(written)
    write_celeba(written, 30, rng_seed=11)
    assert read(written) == before


def test_what_a_killed_writer_left_is_harmless(tmp_path, monkeypatch):
    write_celeba(tmp_path, 3, rng_seed=1, processes=1)
    whole = read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(faces.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_celeba(tmp_path, 4, rng_seed=2, processes=1)
    assert all(name.endswith(".part") for name in read(tmp_path)), "looks whole but is not"
    write_celeba(tmp_path, 3, rng_seed=1, processes=1)
    assert read(tmp_path) == whole
    assert json.loads(whole["ganray-faces.json"])["num_images"] == 3


def test_the_real_celeba_is_never_replaced(tmp_path):
    (tmp_path / "img_align_celeba.zip").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="was not written by ganray"):
        write_celeba(tmp_path, 3, rng_seed=1)
    assert (tmp_path / "img_align_celeba.zip").read_bytes() == b"precious"


def test_a_count_outside_six_digits_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="num_images=1000000"):
        write_celeba(tmp_path, 1_000_000, rng_seed=1)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_to_all_processes_ends_the_drawing_with_one_line(tmp_path, name, code):
    """As a terminal sends Ctrl-C and `ray job stop` SIGTERM; the rest is not drawn."""
    script = tmp_path / "draw.py"
    script.write_text(
        "import signal\nfrom pathlib import Path\n"
        "from ganray.config import cli\nfrom ganray.data.sources.faces import write_celeba\n"
        "def main(argv):\n"
        "    write_celeba(Path(argv[0]), 999_999, 0, 2, lambda n: print(n, flush=True))\n"
        "if __name__ == '__main__':\n"
        # A shell starts background commands, and so perhaps these tests, with SIGINT ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    cli.run(main)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(script), str(tmp_path / "faces")]
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        process.stdout.readline()
        os.killpg(process.pid, getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "stopped\n")
