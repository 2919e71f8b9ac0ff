"""What the data options do to a whole run: nothing, where they only say how images are read."""

from dataclasses import replace
from pathlib import Path

import pytest

from ganray.config.schema import DataConfig
from ganray.config.serialization import check_resumes
from ganray.data.writer import write_shards
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import Squares, tiny_config
from tests.training.test_resume import states_equal


def run(home: Path, where: object, **data: object) -> tuple[dict, Path]:
    config = tiny_config(home)
    config = replace(config, data=replace(config.data, **data))
    return read_state(launch(config, str(where))), config.run_folder()


@pytest.fixture(scope="module")
def streamed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(tmp_path_factory.mktemp("streamed"), squares)[0]


@pytest.mark.parametrize(
    "how", [{"residence": "device"}, {"threads": 3}, {"verify": "first-touch"}, {"root": "file://"}]
)
def test_how_images_are_read_changes_no_bit(squares, streamed, tmp_path, how):
    if "root" in how:
        how = {"root": f"file://{squares}", "cache": tmp_path / "cache", "cache_gb": 1}
    found, _ = run(tmp_path / "run", how.get("root", squares), **how)
    found.pop("config", None)
    expected = {key: value for key, value in streamed.items() if key != "config"}
    assert states_equal(found, expected)


def test_what_only_says_how_may_change_when_a_run_goes_on(tmp_path):
    before = tiny_config(tmp_path)
    how = {"residence": "device", "threads": 3, "verify": "first-touch", "root": "s3://b/set"}
    check_resumes(before, replace(before, data=replace(before.data, **how)))
    for what in ({"shuffle": "blocks"}, {"flip": True}, {"crop": 16}, {"on_damage": "skip"}):
        with pytest.raises(ValueError, match=f"data.{next(iter(what))}"):
            check_resumes(before, replace(before, data=replace(before.data, **what)))


def test_other_orders_and_pictures_learn_something_else(squares, streamed, tmp_path):
    for number, what in enumerate(({"shuffle": "blocks"}, {"flip": True})):
        found, _ = run(tmp_path / str(number), squares, **what)
        assert not states_equal(found["G"], streamed["G"])


def test_networks_see_the_crop(tmp_path):
    write_shards(Squares(), tmp_path / "set", size=20, processes=1)
    state, _ = run(tmp_path, tmp_path / "set", size=20, crop=16)
    assert state["step"] == 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop": 128}, "data.crop=128 is cut from images of data.size=64; use less"),
        ({"threads": 0}, "data.threads=0 must be positive"),
        ({"cache_gb": 0}, "data.cache_gb=0 must be positive"),
        ({"crop": 3}, "data.crop=3 must be 0 or at least 8"),
    ],
)
def test_wrong_options_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**data)
