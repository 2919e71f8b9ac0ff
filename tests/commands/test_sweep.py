"""jobs/sweep.py as far as it goes without Ray: options, the plan, and what it refuses."""

import dataclasses
import json
import re
from dataclasses import asdict

import pytest

from ganray.commands import sweep
from ganray.config import cli
from ganray.config.commands import SweepConfig
from ganray.data.writer import write_shards
from ganray.sweeps import design
from ganray.sweeps.axes import parse_axis, share_reference
from ganray.training import launch
from tests.conftest import Squares, load_job

DIGITS = ["--data.source", "digits", "--dry-run"]


@pytest.fixture
def job(home):
    return load_job("sweep")


def test_the_default_study_changes_one_thing_from_latent_to_latent(job, capsys):
    job.main([*DIGITS, "--name", "mine"])
    said = capsys.readouterr().out
    assert "36 cells x 5 seeds = 180 runs, grid, " in said
    assert "uniform, uniform centred, uniform standardised, normal" in said
    assert "optimizer" in said
    assert "sgd, rmsprop, adam" in said


def test_options_may_go_together_with_the_default_preset_alone(job, capsys):
    job.main([*DIGITS, "--data.size", "0"])  # which no DCGAN takes
    assert "8x8x1 raw" in capsys.readouterr().out


def test_an_axis_is_checked_against_the_preset_it_departs_from(job, capsys):
    widths = ["--sweep.axis", "network.kind=metz", "--sweep.axis", "network.width_D=1,2"]
    job.main(["cpu32", *DIGITS, *widths, "--sweep.seeds", "1"])
    assert "2 cells x 1 seeds" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"network\.width_D=1 must be positive and divide by 4"):
        job.main(["cpu32", *DIGITS, *widths[2:]])


def test_axes_add_up_and_any_preset_is_a_base(job, capsys):
    job.main(
        [
            "first",
            *DIGITS,
            "--sweep.axis",
            "latent.size=1,2",
            "--sweep.axis=loss.name=bce,mse",
            "--sweep.seeds",
            "3",
        ]
    )
    said = capsys.readouterr().out
    assert "4 cells x 3 seeds = 12 runs" in said
    assert "60 kimg" in said


def test_what_is_learned_is_an_axis_and_the_same_images_judge(job, capsys):
    axes = ["--sweep.axis", "data.images=100,null", "--sweep.axis=data.size=8,16"]
    job.main([*DIGITS, "--data.size", "0", *axes, "--sweep.axis", "data.flip=false,true"])
    said = capsys.readouterr().out
    assert "8 cells x 5 seeds" in said
    assert "100, all" in said
    assert "compared with 1,500 images of scikit-learn's digits, 8x8" in said
    assert re.search(r"judges +All runs are compared with the same images", said)


def test_images_that_show_something_else_are_planned_one_by_one(job, tmp_path, capsys):
    write_shards(Squares(200), tmp_path / "set", processes=1)
    axis = f"data.source+data.root=digits+null,celeba+{tmp_path / 'set'}"
    small = ["--data.size", "0", "--network.kind", "mlp", "--data.download", "false", "--dry-run"]
    job.main([*small, "--sweep.axis", axis])
    said = capsys.readouterr().out
    assert "digits, celeba set" in said
    assert "Runs of each level of source root are compared with its own images" in said
    with pytest.raises(ValueError, match="/nowhere: no such folder"):
        job.main([*small, "--sweep.axis", axis.replace(str(tmp_path / "set"), "/nowhere")])


def test_a_search_says_what_its_figures_are_worth(job, capsys):
    job.main([*DIGITS, "--sweep.design", "tpe", "--sweep.axis", "rate=0.1..10"])
    said = capsys.readouterr().out
    assert "20 runs, tpe" in said
    assert "0.1 .. 10" in said
    assert "say nothing of effects" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep.axis", "latent.size=1,many"], "many"),
        (["--sweep.axis", "latent.size=-1"], r"latent\.size=-1 must be positive"),
        (["--sweep.axis", "network.pack=1,3"], r"train\.batch_size=64"),
        (["--sweep.axis", "rate=1..2"], "the range of rate is for searches"),
        (["--sweep.axis", "rate=2..1", "--sweep.design", "tpe"], r"must be FIELD=LEAST\.\.MOST"),
        (["--sweep.design", "pbt", "--sweep.axis", "latent.size=1,2"], "while a run goes on"),
        (["--sweep.design", "random", "--sweep.settings", "37"], r"must lie in 1 \.\. 36"),
        (
            ["--sweep.design", "tpe", "--sweep.axis", "network.width_G=16..64"],
            r"tpe may draw what cannot be: network\.width_G=17 must be positive and divide by 4",
        ),
        (
            ["--sweep.design", "pbt", "--sweep.axis", "optimizer.beta1=0.5..1.5"],
            r"optimizer\.beta1=1\.5 must lie in \[0, 1\)",
        ),
        (
            [
                *("--sweep.design", "tpe", "--sweep.axis", "network.conditional=false,true"),
                *("--sweep.axis", "network.pack=1,2"),
            ],
            r"network\.pack=2 joins images",
        ),
        (["--sweep.axis", "data.images=9..99", "--sweep.design", "tpe"], "name the values of data"),
        (["--sweep.axis", "data.split=train,valid"], r"data\.split=valid has no images"),
        (
            [
                *("--data.source", "celeba", "--data.size", "0", "--data.drawn", "99"),
                *("--sweep.axis", "data.size=16"),
            ],
            r"samples of 16x16x3 and reals of 218x178x3 do not compare",
        ),
        (
            [
                *("--data.source", "celeba", "--data.drawn", "99"),
                *("--sweep.axis", "network.conditional=false,true"),
            ],
            r"network\.conditional=True needs images with class labels",
        ),
        (["--evaluation.samples", "0"], "a study compares what is measured"),
        (["--launcher", "torch"], "a study runs on Ray"),
        (["--resume"], "holds no study to go on with"),
        (["--resume", "--name", "gone"], "holds no study called 'gone'"),
        (["--sweep.seeds", "0"], r"sweep\.seeds=0 must be positive"),
    ],
)
def test_bad_input_is_refused_on_the_driver_in_one_line(job, options, message):
    with pytest.raises(ValueError, match=message) as error:
        job.main([*DIGITS, *options])
    assert "\n" not in str(error.value)


def begun(home, *options):
    """A study that was planned, and then left."""
    config, sweeps = cli.parse_sweep(
        ["latents", *DIGITS, "--name", "old", *options], load_presets(), "latents", ""
    )
    axes = [parse_axis(text, config, cli.value_of) for text in sweeps.axis]
    config, axes = share_reference(sweep._for_trials(config, sweeps, axes), axes)
    sweep._claim(sweep._planned(config, sweeps, axes), config, sweeps)
    return config


def load_presets():
    from ganray.config.presets import SWEEPS

    return SWEEPS


def test_the_same_command_goes_on_with_a_study_and_another_is_refused(job, home, capsys):
    begun(home, "--sweep.axis", "latent.size=1,2")
    job.main([*DIGITS, "--name", "old", "--sweep.axis", "latent.size=1,2"])
    assert "2 cells x 5 seeds" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"study 'old' exists with other axes or runs"):
        job.main([*DIGITS, "--name", "old", "--sweep.axis", "latent.size=1,3"])
    with pytest.raises(ValueError, match="exists with other settings"):
        job.main(
            [
                *DIGITS,
                "--name",
                "old",
                "--sweep.axis",
                "latent.size=1,2",
                "--train.kimg",
                "9",
                "--loss.name",
                "mse",
            ]
        )


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ([], ["--train.kimg", "12"], r"train\.kimg=12.* \(was 120\)"),
        ([], ["--evaluation.samples", "200"], r"evaluation\.samples=200 \(was 2000\)"),
        (
            ["asha"],
            ["--sweep.design", "grid"],
            r"sweep\.design=grid: study 'old' was begun with asha",
        ),
        (["asha"], ["--sweep.metric", "recall"], r"sweep\.metric=recall: .* begun with coverage"),
        (["tpe"], ["--sweep.settings", "9"], r"sweep\.settings=9: .* begun with None"),
        (["tpe"], ["--sweep.concurrent", "9"], r"sweep\.concurrent=9: .* begun with None"),
    ],
)
def test_runs_that_would_not_compare_with_those_of_the_study_are_refused(
    job, home, before, now, message
):
    known = ["--sweep.axis", "latent.size=1,2"]
    known += [word for design in before for word in ("--sweep.design", design)]
    begun(home, *known)
    with pytest.raises(ValueError, match=message) as error:
        job.main([*DIGITS, "--name", "old", *known, *now])
    assert "\n" not in str(error.value)


def test_a_study_goes_on_with_the_images_that_it_began_with(job, home):
    config = begun(home, "--sweep.axis", "latent.size=1,2")
    launch.record_dataset(sweep.sweep_folder(config), "other images", "0" * 16)
    options = [option for option in DIGITS if option != "--dry-run"]
    with pytest.raises(ValueError, match="was trained on other images, which differ from "):
        job.main([*options, "--name", "old", "--sweep.axis", "latent.size=1,2"])


def test_a_study_goes_on_with_what_changes_no_figure(job, home, capsys):
    begun(home, "--sweep.axis", "latent.size=1,2")
    again = ["--name", "old", "--sweep.axis", "latent.size=1,2", "--sweep.metric", "recall"]
    job.main([*DIGITS, *again, "--sweep.retries", "7", "--train.log_every", "9"])
    assert "2 cells x 5 seeds" in capsys.readouterr().out


def test_resume_takes_the_newest_study_as_it_was_begun(job, home, capsys):
    config = begun(home, "--sweep.axis", "latent.size=1,2", "--sweep.seeds", "2")
    job.main(["--dry-run", "--resume"])
    assert "2 cells x 2 seeds = 4 runs" in capsys.readouterr().out
    folder = sweep.sweep_folder(config)
    assert json.loads((folder / "sweep.json").read_text())["seeds"] == 2
    assert len(design.load_plan(folder).trials) == 4


def test_resume_keeps_the_runs_at_a_time_of_a_search_and_of_no_other(job, home, capsys):
    begun(home, "--sweep.axis", "rate=0.1..10", "--sweep.design", "tpe", "--sweep.concurrent", "1")
    job.main(["--dry-run", "--resume"])
    assert "20 runs, tpe, 1 at a time" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"sweep\.concurrent=2: study 'old' was begun with 1"):
        job.main(["--dry-run", "--resume", "--sweep.concurrent", "2"])


def test_a_stand_in_is_only_for_images_that_no_axis_names(home, monkeypatch):
    """Without a network: digits for MNIST, but not for a level that is called so."""

    def offline(data, home):
        return dataclasses.replace(data, source="digits", download=False)

    monkeypatch.setattr(sweep.prepare, "fetch", offline)
    config, options = cli.parse_sweep([], load_presets(), "latents", "")
    for text, source in (("data.crop=0,24", "digits"), ("data.source=digits,mnist", "mnist")):
        axis = parse_axis(text, config, cli.value_of)
        assert sweep._for_trials(config, options, [axis]).data.source == source


def test_a_url_that_was_kept_without_its_password_is_given_anew(home):
    begun(home, "--sweep.axis", "latent.size=1,2")
    argv = ["--resume", "--dry-run", "--data.root", "http://me:hush@host/a"]
    config, options = cli.parse_sweep(argv, load_presets(), "latents", "")
    config, _ = sweep._left_behind(config, options)
    assert config.data.root == "http://me:hush@host/a"
    assert config.data.source == "digits"


def test_what_a_sweep_is_asked_is_written_as_plain_json():
    assert SweepConfig(**json.loads(json.dumps(asdict(SweepConfig(["a=1,2"]))))).axis == ["a=1,2"]
