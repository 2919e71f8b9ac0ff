"""Axes are parsed and validated, and their runs get the right reference images."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from ganray.config.cli import parse_value
from ganray.config.schema import SECTIONS, Config, OptimizerConfig
from ganray.config.serialization import flatten
from ganray.sweeps import design
from ganray.sweeps.axes import OPTIMIZERS, Level, parse_axis, share_reference
from ganray.sweeps.design import make_plan

BASE = Config(optimizer=OptimizerConfig("adam", 1e-3, 2e-3))


def read_value(field, value):
    return int(value) if field == "latent.size" else value


def axis(text, read=read_value):
    return parse_axis(text, BASE, read)


def test_an_axis_of_one_field():
    sizes = axis("latent.size=1,10,100")
    assert sizes.labels == ("1", "10", "100")
    assert sizes.levels[1].overrides == {"latent.size": 10}
    assert sizes.title == "size"
    assert axis("loss.name=bce,hinge").title == "loss"


def test_fields_that_vary_together_are_one_axis():
    shapes = axis("latent.distribution+latent.scaling=uniform+raw,uniform+centered")
    assert shapes.labels == ("uniform", "uniform centered")
    assert shapes.levels[1].overrides == {
        "latent.distribution": "uniform",
        "latent.scaling": "centered",
    }
    assert shapes.title == "distribution scaling"


def test_labels_leave_out_default_values():
    moved = axis("latent.distribution+latent.scaling+latent.offset=normal+raw+0,normal+raw+2")
    assert moved.labels == ("normal", "normal 2")
    assert axis("latent.scaling=raw,centered").labels == ("raw", "centered")


def test_optimizers_have_learning_rates_of_their_own_that_rate_multiplies():
    sgd = axis("optimizer=sgd").levels[0]
    assert sgd.overrides["optimizer.lr_G"] == pytest.approx(0.1)
    assert sgd.overrides["optimizer.lr_D"] == pytest.approx(0.2)
    sweep = make_plan("s", [axis("optimizer=sgd,lion"), axis("rate=0.5,2")], 1)
    configs = {trial.levels: trial.config(BASE).optimizer for trial in sweep.trials}
    assert configs["sgd", "2"] == OptimizerConfig("sgd", 0.2, 0.4, beta1=0.0)
    assert configs["lion", "0.5"].lr_G == pytest.approx(5e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_named_optimizer_is_valid(name):
    config = make_plan("s", [axis(f"optimizer={name}")], 1).trials[0].config(BASE)
    assert config.optimizer.lr_D == pytest.approx(2 * config.optimizer.lr_G)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent.sise=1", "'latent.sise' is not a field that can be varied"),
        ("home=a,b", "'home' is not a field that can be varied; use one of data.*"),
        (
            "tracking.uri=a,b",
            "tracking is shared by all runs of a sweep",
        ),
        ("evaluation.samples=80,90", "evaluation is shared by all runs"),
        (
            "latent.size+ray.workers=1+1,2+2",
            "ray is shared by all runs",
        ),
        ("latent.size", "must be FIELD=VALUE"),
        ("latent.size=1,1", "distinct values"),
        ("latent.size=10,010", "distinct values"),
        ("rate=1,1.0", "distinct values"),
        ("latent.size+latent.scaling=1,10", "'1' must hold 2 values joined by +"),
        ("latent.sise=1", "did you mean latent.size?"),
        ("optimizer=sdg", "optimizer='sdg' is not one of sgd, momentum"),
        ("optimizer=sdg", "did you mean sgd?"),
        ("rate=fast", "rate=fast must be a positive number"),
        ("train.rng_seed=1,2", "use --sweep.seeds"),
        ("data.images=200..1700", "shards are made before runs start, so list the values"),
    ],
)
def test_invalid_axis_is_rejected_in_one_line(text, message):
    with pytest.raises(ValueError, match=r"sweep\.axis") as error:
        axis(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_field_of_data_and_training_can_be_varied(tmp_path):
    sections = {"data", "latent", "network", "loss", "optimizer", "train"}
    fields = {name for name in flatten(BASE) if name.partition(".")[0] in sections}
    for field in sorted(fields - {"train.rng_seed"}):
        sweep = make_plan("s", [axis(f"{field}={','.join(two_of(field))}", parse_value)], 1)
        assert len(sweep.trials) == 2, field
        sweep.save(tmp_path)
        assert design.load_plan(tmp_path) == sweep, field
        for trial in sweep.trials:
            try:
                config = trial.config(BASE)
            except ValueError:
                continue  # a rule of its own: these values were not made for it
            section, _, name = field.partition(".")
            kept, plain = (getattr(getattr(one, section), name) for one in (config, BASE))
            assert isinstance(kept, Path) == isinstance(plain, Path), field


def two_of(field):
    """Two values of its type, as they are typed."""
    section, _, name = field.partition(".")
    hint = get_type_hints(SECTIONS[section])[name]
    if get_origin(hint) is Literal:
        return get_args(hint)[:2]
    if hint is bool:
        return "false", "true"
    return ("0.25", "0.5") if hint is float else ("16", "32")


def trials_of(*texts, base=BASE):
    base, axes = share_reference(base, [axis(text, parse_value) for text in texts])
    return [trial.config(base) for trial in make_plan("s", axes, 1).trials]


def test_runs_on_other_forms_of_the_images_share_the_reference():
    few, all_ = sorted(
        trials_of("data.images+latent.size=500+1,null+2"), key=lambda one: one.latent.size
    )
    assert few.data.images == 500
    assert all_.data.images is None
    assert few.reference_data() == all_.reference_data() == all_.data
    texts = ("data.flip=true", "data.split=test", "data.faces=9", "data.encoding=jpeg")
    (other,) = trials_of("data.size=32", *texts)
    assert other.reference_data() == BASE.data != other.data
    small = replace(BASE, evaluation=replace(BASE.evaluation, reference={"size": 8}))
    (other,) = trials_of("data.size=32", base=small)  # unless others are asked for
    assert other.reference_data() == replace(BASE.data, size=8)


def test_levels_of_other_content_have_their_own_reference():
    for text in ("data.source+data.images=digits+5", "data.root=/a", "data.crop=24"):
        (other,) = trials_of(text)
        assert other.reference_data() == other.data
        assert axis(text).own_reference
    # Squares cut from larger images show another part: so their size is such an axis, too.
    cut = replace(BASE, data=replace(BASE.data, crop=24))
    for texts, base in ((("data.size=32",), cut), (("data.crop=24", "data.size=32"), BASE)):
        (other,) = trials_of(*texts, base=base)
        assert other.reference_data() == other.data
        _, axes = share_reference(base, [axis(text, parse_value) for text in texts])
        assert all(one.own_reference for one in axes)
    (few,) = trials_of("data.source=digits", "data.images=5")
    assert few.reference_data() == replace(few.data, images=None)
    assert not axis("data.images=1,2").own_reference


def test_roots_are_labeled_by_the_last_part_of_their_path():
    roots = axis("data.root=../a,/d/v1..2/b+c,null", parse_value)
    assert roots.labels == ("a", "b+c", "null")
    assert [level.overrides["data.root"] for level in roots.levels] == [
        "../a",
        "/d/v1..2/b+c",
        None,
    ]
    assert axis("data.root=/a/x,/b/x", parse_value).labels == ("/a/x", "/b/x")
    sources = axis("data.source+data.root=digits+null,folder+/a/x", parse_value)
    assert sources.labels == ("digits", "folder x")
    with pytest.raises(ValueError, match=r"two levels give the same run name, s\.one-a-s0"):
        make_plan("s", [axis("data.root=/one a,/one-a", parse_value)], 1)


@pytest.mark.parametrize("root", ["http://me:hush@host/a", "https://host/a?X-Sig=hush"])
def test_secrets_are_not_saved(root):
    with pytest.raises(ValueError, match=r"data\.root=.*\*\*\*.*save the") as error:
        axis(f"data.root={root},/b", parse_value)
    assert "hush" not in str(error.value)


def test_level_without_a_limit_is_labeled_all():
    assert axis("data.images=5,null", parse_value).labels == ("5", "all")


def test_numbers_are_clipped_to_the_range_and_large_integers_stay_distinct():
    rates = axis("optimizer.beta1=0.1..0.9", lambda _, value: float(value))
    assert rates.level(1.08).overrides == {"optimizer.beta1": 0.9}
    assert rates.level(0.12345).label == "0.123"
    sizes = axis("latent.size=1..2000000")
    assert sizes.level(1_234_567) == Level("1234567", {"latent.size": 1_234_567})
    assert [level.label for level in sizes.extremes] == ["1", "2", "2000000"]
