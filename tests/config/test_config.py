"""Config: validation, serialization, and changes on resume."""

import ast
import dataclasses
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ganray.config import schema
from ganray.config.presets import ABOUT, CELEBA, MNIST, STACKED
from ganray.config.schema import (
    SECTIONS,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    NetworkConfig,
    ReferenceData,
    TrackingConfig,
    TrainConfig,
    data_fields,
)
from ganray.config.serialization import check_resumes, flatten, from_dict, to_dict
from ganray.errors import UserError


def test_presets_are_the_same_after_a_round_trip_through_json():
    for preset in (CELEBA | STACKED).values():
        with_path = replace(preset, data=replace(preset.data, cache=Path("/local")))
        for config in (preset, with_path):
            assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_keys_are_rejected_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"loss: unknown key\(s\) \['nme'\]; known: \['name'"):
        from_dict(to_dict(Config()) | {"loss": {"nme": "bce"}})


@pytest.mark.parametrize(
    ("root", "redacted"),
    [
        ("http://me:pass@host:80/a@b", "http://***@host:80/a@b"),
        ("https://store/set?sig=pass", "https://store/set?***"),
        ("http://me:pass@host/api?token=pass", "http://***@host/api?***"),
        ("s3://bucket/set", "s3://bucket/set"),
        ("/data/a?b", "/data/a?b"),
        (None, None),
    ],
)
def test_secrets_in_urls_are_redacted(root, redacted):
    config = Config(data=DataConfig(root=root), tracking=TrackingConfig(uri=root))
    assert to_dict(config)["data"]["root"] == flatten(config)["data.root"] == redacted
    assert to_dict(config)["tracking"]["uri"] == flatten(config)["tracking.uri"] == redacted
    check_resumes(from_dict(to_dict(config)), config)


def test_the_repr_which_rays_dashboard_shows_has_no_secrets():
    url = "https://user:password@host/shards"
    config = Config(data=DataConfig(root=url), tracking=TrackingConfig(uri=url))
    assert "password" not in repr(config)


def test_flat_names_and_values():
    flat = flatten(Config())
    assert flat["latent.size"] == 100
    assert flat["home"] == "~/.ganray"
    assert not any(isinstance(value, dict | Path) for value in flat.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size=0 must be positive"),
        (lambda: TrainConfig(kimg=-1), "train.kimg=-1 must be positive"),
        (lambda: TrainConfig(kimg=float("nan")), "train.kimg=nan must be positive"),
        (lambda: TrainConfig(rng_seed=-1), "train.rng_seed=-1 must lie in"),
        (lambda: DataConfig(size=3), "data.size=3 must be 0 or at least 8"),
        (lambda: TrainConfig(G_every=0), "train.G_every=0 must be positive"),
        (lambda: LossConfig(gp_weight=-1), "loss.gp_weight=-1 must not be negative"),
        (lambda: NetworkConfig(pack=9), "network.pack=9 must lie in 1 .. 8"),
        (lambda: NetworkConfig(minibatch_stddev=1), "network.minibatch_stddev=1 must be 0 or at"),
        (lambda: NetworkConfig(pack=2, conditional=True), "exclude each other"),
        (lambda: NetworkConfig(width_G=6), "network.width_G=6 must be divisible by 4"),
        (
            lambda: Config(data=DataConfig(size=12)),
            "data.size to be 16 or more, not 12; try --data",
        ),
        (lambda: Config(data=DataConfig(size=0)), "data.size to be 16 or more, not 0; try --data"),
        (lambda: NetworkConfig(kind="metz", width_D=0), "network.width_D=0 must be positive"),
        (lambda: Config(name="a/b"), "name='a/b' may hold letters"),
        (lambda: Config(name="../up"), "name='../up' may hold letters"),
    ],
)
def test_an_invalid_value_is_rejected_with_name_value_and_rule(make, message):
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_durations_in_images_become_whole_steps():
    train = TrainConfig(kimg=1, batch_size=128)
    assert train.steps() == 8  # 7.8 rounded up: at least 1,000 images are shown
    assert train.kimg_to_steps(0.001) == 1


def test_a_resumed_run_may_change_its_place_and_length_only():
    before = Config(name="a")
    check_resumes(before, replace(before, home=Path("/x"), train=TrainConfig(kimg=99)))
    check_resumes(before, replace(before, ray=replace(before.ray, workers=8)))
    with pytest.raises(ValueError, match=r"train.rng_seed=7 \(was 0\); use another --name"):
        check_resumes(before, replace(before, train=TrainConfig(rng_seed=7)))


def test_a_run_older_than_a_field_has_its_default():
    config = Config(name="a")
    old = to_dict(config)
    for section, name in (("network", "pack"), ("loss", "unroll"), ("train", "G_every")):
        del old[section][name]
    assert from_dict(old) == config
    packed = replace(config, network=replace(config.network, pack=2))
    with pytest.raises(ValueError, match=r"network.pack=2 \(was 1\); use another --name"):
        check_resumes(from_dict(old), packed)


def test_G_is_updated_after_every_G_every_updates_of_D():
    assert [TrainConfig().generator_updates(step) for step in range(2)] == [["G"], ["G"]]
    updates = [TrainConfig(G_every=3, G_steps=2).generator_updates(step) for step in range(6)]
    assert updates == [[], [], ["G", "G1"], [], [], ["G", "G1"]]


def test_every_field_has_a_docstring():
    tree = ast.parse(inspect.getsource(schema))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for kind in (Config, *SECTIONS.values()):
        body = classes[kind.__name__].body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented or ast.unparse(node.target) in SECTIONS, ast.unparse(node)


def test_every_preset_has_its_name_and_a_description():
    for name, preset in (CELEBA | MNIST | STACKED).items():
        assert preset.preset == name
        assert len(ABOUT[name]) > 40


def test_reference_images_may_differ_from_the_training_images():
    data = DataConfig("mnist", images=500, size=28, flip=True)
    config = Config(
        data=data, evaluation=EvaluationConfig(reference={"images": None, "flip": False})
    )
    assert config.reference_data() == DataConfig("mnist", size=28)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert flatten(config)["evaluation.reference.images"] is None
    plain = replace(config, evaluation=EvaluationConfig())
    assert plain.reference_data() == plain.data
    assert not [name for name in flatten(plain) if "reference" in name]
    assert config.images_identity() != plain.images_identity()
    read = replace(config, data=replace(data, threads=2, shuffle="blocks"))
    assert config.images_identity() == read.images_identity()
    check_resumes(config, plain)  # evaluation may change on resume
    nine = replace(config, evaluation=EvaluationConfig(reference={"images": 9}))
    with pytest.raises(ValueError, match=r"evaluation\.reference\.images=not set \(was 9\)"):
        check_resumes(nine, plain, fixed={"evaluation.reference"})
    with pytest.raises(ValueError, match=r"evaluation\.reference=.*: data\.size=3 must be 0 or"):
        replace(config, evaluation=EvaluationConfig(reference={"size": 3}))
    with pytest.raises(ValueError, match="show different parts"):
        Config(data=replace(data, crop=24), evaluation=EvaluationConfig(reference={"size": 64}))
    with pytest.raises(ValueError, match=r"evaluation\.reference: threads must be one of images,"):
        EvaluationConfig(reference={"threads": 2})  # pyright: ignore


def test_every_field_has_metadata():
    sections = {"config": Config, **SECTIONS}
    for name, section in sections.items():
        for f in dataclasses.fields(section):
            if name == "config" and f.name in SECTIONS:
                continue
            assert f.metadata.get("resume") in ("fixed", "free"), f"{name}.{f.name}"
            assert f.metadata.get("sweep") in ("no", "axis", "live"), f"{name}.{f.name}"
            assert isinstance(f.metadata.get("secret"), bool), f"{name}.{f.name}"
            if name == "data":
                assert f.metadata["identity"] in ("content", "selection", "none"), f.name
    assert set(data_fields("selection")) == set(ReferenceData.__annotations__)


def test_a_data_field_without_identity_is_an_error(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Extended(schema.DataConfig):
        gray: bool = False

    monkeypatch.setattr(schema, "DataConfig", Extended)
    with pytest.raises(TypeError, match=r"data\.gray needs an identity"):
        Extended(gray=True).identity()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://user:password@bucket/ganray", r"^storage=s3://\*\*\*@bucket/ganray: leave out user"),
        ("https://host/ganray?token=password", r"^storage=https://host/ganray: leave out user"),
        ("/home/me/.ganray", "must not be, contain or be in home=/home/me/.ganray"),
        ("file:///home/me", "must not be, contain or be in home=/home/me/.ganray"),
        ("/home/me/.ganray/store", "must not be, contain or be in home=/home/me/.ganray"),
    ],
)
def test_a_storage_holds_no_password_and_is_not_the_home(storage, message):
    with pytest.raises(UserError, match=message) as error:
        Config(home=Path("/home/me/.ganray"), storage=storage)
    assert "password@" not in str(error.value)
    assert "token" not in str(error.value)
