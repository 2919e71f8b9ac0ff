"""Effect of the data options on training: none, if they only change how images are read."""

from dataclasses import replace
from pathlib import Path

import pytest

from ganray.config.schema import DataConfig
from ganray.config.serialization import check_resumes
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import Squares, tiny_config
from tests.training.test_resume import states_equal


def run(home: Path, shards: object, **data: object) -> tuple[dict, Path]:
    config = tiny_config(home)
    config = replace(config, data=replace(config.data, **data))
    return read_state(launch(config, str(shards))), config.run_folder()


@pytest.fixture(scope="module")
def streamed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(tmp_path_factory.mktemp("streamed"), squares)[0]


@pytest.mark.parametrize(
    "options",
    [{"residence": "device"}, {"threads": 3}, {"verify": "first-touch"}, {"root": "file://"}],
)
def test_reading_options_do_not_change_training(squares, streamed, tmp_path, options):
    if "root" in options:
        options = {"root": f"file://{squares}", "cache": tmp_path / "cache", "cache_gb": 1}
    state, _ = run(tmp_path / "run", options.get("root", squares), **options)
    assert states_equal(state, streamed)


def test_only_reading_options_may_change_on_resume(tmp_path):
    before = tiny_config(tmp_path)
    reading = {"residence": "device", "threads": 3, "verify": "first-touch", "root": "s3://b/set"}
    check_resumes(before, replace(before, data=replace(before.data, **reading)))
    for content in ({"shuffle": "blocks"}, {"flip": True}, {"crop": 16}):
        with pytest.raises(UserError, match=f"data.{next(iter(content))}"):
            check_resumes(before, replace(before, data=replace(before.data, **content)))


def test_content_options_change_training(squares, streamed, tmp_path):
    for number, options in enumerate(({"shuffle": "blocks"}, {"flip": True})):
        state, _ = run(tmp_path / str(number), squares, **options)
        assert not states_equal(state["G"], streamed["G"])


def test_networks_are_built_for_the_crop(tmp_path):
    write_shards(Squares(), tmp_path / "set", size=20, processes=1)
    state, _ = run(tmp_path, tmp_path / "set", size=20, crop=16)
    assert state["step"] == 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop": 128}, "data.crop=128 must not exceed data.size=64"),
        ({"threads": 0}, "data.threads=0 must be positive"),
        ({"cache_gb": 0}, "data.cache_gb=0 must be positive"),
        ({"crop": 3}, "data.crop=3 must be 0 or at least 8"),
    ],
)
def test_invalid_options_are_rejected(data, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**data)
