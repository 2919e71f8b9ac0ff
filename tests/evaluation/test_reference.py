"""Location and preparation of reference images other than the training images."""

import shutil
from dataclasses import replace

import pytest

from ganray.config.schema import DataConfig
from ganray.data import prepare
from ganray.evaluation import reference
from tests.conftest import tiny_config


def digits_config(home, samples=80, check=False, reference=None, **data):
    config = tiny_config(home)
    return replace(
        config,
        data=DataConfig(**({"source": "digits", "size": 0} | data)),
        network=replace(config.network, kind="mlp"),
        evaluation=replace(config.evaluation, samples=samples, reference=reference or {}),
        check_discriminator=check,
    )


def test_other_reference_images_are_prepared_if_evaluation_is_enabled(tmp_path):
    config = digits_config(tmp_path, images=100, reference={"images": None})
    datasets = reference.locate_datasets(config)
    assert not datasets.same
    assert (datasets.images.count, datasets.reference.count) == (100, 1797)
    assert datasets.prepare() != datasets.reference_digest()
    with datasets.open_reference() as images:
        assert len(images) == 1797
    for config in (
        digits_config(tmp_path, images=100),
        digits_config(tmp_path, images=100, reference={"images": 100}),
        digits_config(tmp_path, samples=0, images=100, reference={"images": 50}),
        digits_config(tmp_path, check=True, images=100, reference={"images": 50}),
    ):
        datasets = reference.locate_datasets(config)
        assert datasets.same
        assert datasets.prepare()
    assert len(list((tmp_path / "shards").iterdir())) == 2


def test_faces_are_drawn_once_for_training_and_reference_images(tmp_path, monkeypatch):
    calls = []
    progress = prepare.Progress
    monkeypatch.setattr(prepare, "Progress", lambda *args: calls.append(args) or progress(*args))
    config = digits_config(
        tmp_path, source="celeba", faces=12, images=5, reference={"images": None}
    )
    datasets = reference.locate_datasets(config)
    datasets.prepare()
    datasets.reference_digest()
    assert calls == [(12, "drawing faces", "faces")]


def test_the_disk_must_have_room_for_both_sets(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1797 * 64 + 99)  # for one set of 8x8 digits
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: free)
    reference.locate_datasets(digits_config(tmp_path))
    reference.locate_datasets(
        digits_config(tmp_path, flip=True, reference={"flip": False})
    )  # one set
    with pytest.raises(ValueError, match="the shards need"):
        reference.locate_datasets(digits_config(tmp_path, images=100, reference={"images": None}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, r"evaluation\.reference=.*: data\.split=valid has no images"),
        ({"size": 24}, r"evaluation\.reference=.*: data\.size=24: .* contains pixels of 16x16"),
        (
            {"split": "test"},
            r"data\.split=all and evaluation\.reference\.split=test: all of .* is used",
        ),
    ],
)
def test_missing_reference_images_are_rejected_by_option(tmp_path, squares, options, message):
    root = {"root": str(squares), "source": "celeba"} if options != {"split": "valid"} else {}
    with pytest.raises(ValueError, match=message) as error:
        reference.locate_datasets(digits_config(tmp_path, reference=options, **root))
    assert "\n" not in str(error.value)


def test_images_are_not_downloaded_to_a_url(tmp_path):
    remote = DataConfig("mnist", root="http://me:hush@127.0.0.1:9/mnist", download=True)
    assert prepare.fetch(remote, tmp_path) is remote
