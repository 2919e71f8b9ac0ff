"""Which images a run needs beside those it learns, and what is refused of them."""

import shutil
from dataclasses import replace

import pytest

from ganray.config.schema import DataConfig
from ganray.data import prepare
from ganray.evaluation import reference
from tests.conftest import tiny_config


def run_of(home, samples=80, check=False, reals=None, **data):
    plain = tiny_config(home)
    evaluation = replace(plain.evaluation, samples=samples, reference=reals or {})
    network = replace(plain.network, kind="mlp")
    data = DataConfig(**({"source": "digits", "size": 0} | data))
    return replace(
        plain, data=data, network=network, evaluation=evaluation, check_discriminator=check
    )


def test_other_reals_are_found_and_laid_down_where_anything_is_compared(tmp_path):
    found = reference.locate_datasets(run_of(tmp_path, images=100, reals={"images": None}))
    assert not found.same
    assert (found.images.count, found.reference.count) == (100, 1797)
    assert reference.prepare_datasets(found) != reference.reference_digest(found)
    with reference.open_reference(found) as images:
        assert len(images) == 1797
    for config in (
        run_of(tmp_path, images=100),
        run_of(tmp_path, images=100, reals={"images": 100}),
        run_of(tmp_path, samples=0, images=100, reals={"images": 50}),
        run_of(tmp_path, check=True, images=100, reals={"images": 50}),
    ):
        found = reference.locate_datasets(config)
        assert found.same
        assert reference.prepare_datasets(found)
    assert len(list((tmp_path / "shards").iterdir())) == 2


def test_faces_are_drawn_once_for_both(tmp_path, monkeypatch):
    shown = []
    progress = prepare.Progress
    monkeypatch.setattr(
        prepare, "Progress", lambda *told, **more: shown.append(told) or progress(*told, **more)
    )
    found = reference.locate_datasets(
        run_of(tmp_path, source="celeba", faces=12, images=5, reals={"images": None})
    )
    reference.prepare_datasets(found)
    reference.reference_digest(found)
    assert shown == [(12, "drawing faces", "faces")]


def test_both_sets_must_have_room(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1797 * 64 + 99)  # for one of 8x8 digits
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: free)
    reference.locate_datasets(run_of(tmp_path))
    reference.locate_datasets(run_of(tmp_path, flip=True, reals={"flip": False}))  # of one set
    with pytest.raises(ValueError, match="the shards need"):
        reference.locate_datasets(run_of(tmp_path, images=100, reals={"images": None}))


@pytest.mark.parametrize(
    ("reals", "message"),
    [
        ({"split": "valid"}, r"evaluation\.reference=.*: data\.split=valid has no images"),
        ({"size": 24}, r"evaluation\.reference=.*: data\.size=24: .* contains pixels of 16x16"),
        (
            {"split": "test"},
            r"data\.split=all and evaluation\.reference\.split=test: all of .* is used",
        ),
    ],
)
def test_reals_that_are_not_to_be_had_are_refused_by_their_name(tmp_path, squares, reals, message):
    root = {"root": str(squares), "source": "celeba"} if reals != {"split": "valid"} else {}
    with pytest.raises(ValueError, match=message) as error:
        reference.locate_datasets(run_of(tmp_path, reals=reals, **root))
    assert "\n" not in str(error.value)


def test_nothing_is_downloaded_into_a_url(tmp_path):
    far = DataConfig("mnist", root="http://me:hush@127.0.0.1:9/mnist", download=True)
    assert prepare.fetch(far, tmp_path) is far
