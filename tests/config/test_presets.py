"""`changed_options` compares a config with its preset."""

from dataclasses import replace
from pathlib import Path

from ganray.config.presets import CELEBA, changed_options
from ganray.config.schema import Config


def test_changed_options_are_those_that_differ_from_the_preset():
    config = replace(CELEBA["cpu32"], name="mine", home=Path("/elsewhere"))
    assert changed_options(config) == {}
    config = replace(config, train=replace(config.train, kimg=5))
    assert changed_options(config) == {"train.kimg": "5"}
    secret = replace(config.data, root="https://user:password@host/shards")
    assert "password" not in str(changed_options(replace(config, data=secret)))
    assert changed_options(Config(preset="unknown")) == {}
