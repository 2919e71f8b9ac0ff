"""jobs/sweep.py without Ray: options, the plan, and rejected input."""

import dataclasses
import json
import re
import shlex
from dataclasses import asdict, replace

import pytest

from ganray.commands import sweep
from ganray.config import cli
from ganray.config.commands import SweepConfig
from ganray.data.writer import write_shards
from ganray.sweeps import design
from ganray.sweeps.axes import parse_axis, share_reference
from ganray.sweeps.results import Results, RunResult
from ganray.training import launch
from tests.conftest import Squares, load_job

DIGITS = ["--data.source", "digits", "--dry_run"]


@pytest.fixture
def job(home):
    return load_job("sweep")


def printed(capsys):
    """Return what was printed, whose lines fit the terminal, as one line."""
    return " ".join(capsys.readouterr().out.split())


def test_default_sweep(job, capsys):
    job.main([*DIGITS, "--name", "mine"])
    output = printed(capsys)
    assert "36 settings x 5 seeds = 180 runs, grid, " in output
    assert "uniform, uniform centered, uniform standardized, normal" in output
    assert "optimizer" in output
    assert "sgd, rmsprop, adam" in output


def test_options_are_checked_together_with_the_default_preset(job, capsys):
    job.main([*DIGITS, "--data.size", "0"])  # which no DCGAN takes
    assert "8x8x1 raw" in printed(capsys)


def test_axis_is_checked_against_the_preset(job, capsys):
    widths = ["--sweep.axis", "network.kind=metz", "--sweep.axis", "network.width_D=1,2"]
    job.main(["cpu32", *DIGITS, *widths, "--sweep.seeds", "1"])
    assert "2 settings x 1 seeds" in printed(capsys)
    with pytest.raises(ValueError, match=r"network\.width_D=1 must be divisible by 4"):
        job.main(["cpu32", *DIGITS, *widths[2:]])


def test_axes_accumulate_and_any_preset_can_be_varied(job, capsys):
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
    output = printed(capsys)
    assert "4 settings x 3 seeds = 12 runs" in output
    assert "60 kimg" in output


def test_runs_on_different_training_images_share_their_reference_images(job, capsys):
    axes = ["--sweep.axis", "data.images=100,null", "--sweep.axis=data.size=8,16"]
    job.main([*DIGITS, "--data.size", "0", *axes, "--sweep.axis", "data.flip=false,true"])
    output = printed(capsys)
    assert "8 settings x 5 seeds" in output
    assert "100, all" in output
    assert "reference 1,500 images of scikit-learn's digits, 8x8" in output
    assert re.search(r"reference +All runs share their reference images", output)


def test_data_sources_have_reference_images_of_their_own(job, tmp_path, capsys):
    write_shards(Squares(200), tmp_path / "set", processes=1)
    axis = f"data.source+data.root=digits+null,celeba+{tmp_path / 'set'}"
    small = ["--data.size", "0", "--network.kind", "mlp", "--data.download", "false", "--dry_run"]
    job.main([*small, "--sweep.axis", axis])
    output = printed(capsys)
    assert "digits, celeba set" in output
    assert "Each level of source root has reference images and a classifier of its own" in output
    with pytest.raises(ValueError, match="/nowhere: no such folder"):
        job.main([*small, "--sweep.axis", axis.replace(str(tmp_path / "set"), "/nowhere")])


def test_search_warns_that_effects_cannot_be_estimated(job, capsys):
    job.main([*DIGITS, "--sweep.design", "tpe", "--sweep.axis", "rate=0.1..10"])
    output = printed(capsys)
    assert "20 runs, tpe" in output
    assert "0.1 .. 10" in output
    assert "the effects of the axes cannot be estimated" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep.axis", "latent.size=1,many"], "many"),
        (["--sweep.axis", "latent.size=-1"], r"latent\.size=-1 must be positive"),
        (["--sweep.axis", "network.pack=1,3"], r"train\.batch_size=64"),
        (["--sweep.axis", "rate=1..2"], "a range of rate needs a search"),
        (["--sweep.axis", "rate=2..1", "--sweep.design", "tpe"], r"must be FIELD=MIN\.\.MAX"),
        (
            ["--sweep.design", "pbt", "--sweep.axis", "latent.size=1,2"],
            "cannot change during a run",
        ),
        (["--sweep.design", "random", "--sweep.settings", "37"], r"must lie in 1 \.\. 36"),
        (
            ["--sweep.design", "tpe", "--sweep.axis", "network.width_G=16..64"],
            r"may draw an invalid setting: network\.width_G=17 must be divisible by 4",
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
            r"network\.pack=2 and network\.conditional=true exclude",
        ),
        (["--sweep.axis", "data.images=9..99", "--sweep.design", "tpe"], "list the values of data"),
        (["--sweep.axis", "data.split=train,valid"], r"data\.split=valid has no images"),
        (
            [
                *("--data.source", "celeba", "--data.size", "0", "--data.faces", "99"),
                *("--sweep.axis", "data.size=16"),
            ],
            r"cannot compare samples of 16x16x3 with references of 218x178x3",
        ),
        (
            [
                *("--data.source", "celeba", "--data.faces", "99"),
                *("--sweep.axis", "network.conditional=false,true"),
            ],
            r"network\.conditional=true needs class labels",
        ),
        (["--evaluation.samples", "0"], "a sweep compares metrics"),
        (["--launcher", "torch"], "a sweep runs on Ray"),
        (["--ray.workers", "1:2"], r"ray\.workers=1:2: the runs of a sweep have a fixed number"),
        (["--resume"], "holds no sweep to resume"),
        (["--resume", "--name", "gone"], "holds no sweep named 'gone'"),
        (["--sweep.seeds", "0"], r"sweep\.seeds=0 must be positive"),
    ],
)
def test_bad_input_is_rejected_on_the_driver_in_one_line(job, options, message):
    with pytest.raises(ValueError, match=message) as error:
        job.main([*DIGITS, *options])
    assert "\n" not in str(error.value)


def start_sweep(home, *options):
    """Save a sweep without starting its runs."""
    config, sweeps = cli.parse_sweep(
        ["latents", *DIGITS, "--name", "old", *options], load_presets(), "latents", ""
    )
    axes = [parse_axis(text, config, cli.parse_value) for text in sweeps.axis]
    config, axes = share_reference(sweep.base_config(config, sweeps, axes), axes)
    sweep.save_sweep(sweep.plan_sweep(config, sweeps, axes), config, sweeps)
    return config


def load_presets():
    from ganray.config.presets import SWEEPS

    return SWEEPS


def test_same_command_resumes_a_sweep_and_another_is_rejected(job, home, capsys):
    start_sweep(home, "--sweep.axis", "latent.size=1,2")
    job.main([*DIGITS, "--name", "old", "--sweep.axis", "latent.size=1,2"])
    assert "2 settings x 5 seeds" in printed(capsys)
    with pytest.raises(ValueError, match=r"sweep 'old' exists with other axes or runs"):
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
            r"sweep\.design=grid: sweep 'old' was started with asha",
        ),
        (["asha"], ["--sweep.metric", "recall"], r"sweep\.metric=recall: .* started with coverage"),
        (["tpe"], ["--sweep.settings", "9"], r"sweep\.settings=9: .* started with None"),
        (["tpe"], ["--sweep.concurrent", "9"], r"sweep\.concurrent=9: .* started with None"),
    ],
)
def test_runs_that_would_not_be_comparable_are_rejected(job, home, before, now, message):
    known = ["--sweep.axis", "latent.size=1,2"]
    known += [word for design in before for word in ("--sweep.design", design)]
    start_sweep(home, *known)
    with pytest.raises(ValueError, match=message) as error:
        job.main([*DIGITS, "--name", "old", *known, *now])
    assert "\n" not in str(error.value)


def test_sweep_cannot_resume_on_other_images(job, home):
    config = start_sweep(home, "--sweep.axis", "latent.size=1,2")
    launch.record_dataset(sweep.sweep_folder(config), "other images", "0" * 16)
    options = [option for option in DIGITS if option != "--dry_run"]
    with pytest.raises(ValueError, match="was trained on other images, which differ from "):
        job.main([*options, "--name", "old", "--sweep.axis", "latent.size=1,2"])


def test_options_that_change_no_metric_may_differ_on_resume(job, home, capsys):
    start_sweep(home, "--sweep.axis", "latent.size=1,2")
    again = ["--name", "old", "--sweep.axis", "latent.size=1,2", "--sweep.metric", "recall"]
    job.main([*DIGITS, *again, "--sweep.retries", "7", "--train.log_every", "9"])
    assert "2 settings x 5 seeds" in printed(capsys)


def test_resume_loads_the_newest_sweep(job, home, capsys):
    config = start_sweep(home, "--sweep.axis", "latent.size=1,2", "--sweep.seeds", "2")
    job.main(["--dry_run", "--resume"])
    assert "2 settings x 2 seeds = 4 runs" in printed(capsys)
    folder = sweep.sweep_folder(config)
    assert json.loads((folder / "sweep.json").read_text())["seeds"] == 2
    assert len(design.load_plan(folder).trials) == 4


def test_the_printed_command_resumes_the_sweep(job, tmp_path, capsys, monkeypatch):
    home = tmp_path / "a home"
    axis = ["--sweep.axis", "latent.size=1,2", "--sweep.seeds", "2"]
    start_sweep(home, "--home", str(home), *axis)
    monkeypatch.setenv("COLUMNS", "500")
    job.main(["--dry_run", "--resume", "--home", str(home)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "to resume" in line]
    words = shlex.split(line.partition("(to resume: ")[2].removesuffix(")"))
    assert words == ["python", "jobs/sweep.py", "--resume", "--name", "old", "--home", str(home)]
    job.main([*words[2:], "--dry_run"])
    assert "2 settings x 2 seeds = 4 runs" in printed(capsys)


def test_a_crashed_run_makes_the_exit_code_1_and_a_diverged_one_does_not(home, capsys):
    config = start_sweep(home, "--sweep.axis", "latent.size=1,2", "--sweep.seeds", "1")
    known = Results(design.load_plan(sweep.sweep_folder(config)), {})
    first, second = (trial.name for trial in known.plan.trials)
    finished, diverged = RunResult("finished", {}), RunResult("diverged", {})
    sweep.exit_if_failed(replace(known, by_trial={first: finished, second: diverged}), config)
    crashed = replace(known, by_trial={first: finished, second: RunResult("failed", {})})
    with pytest.raises(SystemExit, match="1"):
        sweep.exit_if_failed(crashed, config)
    assert f"1 of 2 runs failed; to retry: {sweep.resume_command(config)}" in printed(capsys)


def test_resume_keeps_the_concurrency_of_adaptive_searches(job, home, capsys):
    start_sweep(
        home, "--sweep.axis", "rate=0.1..10", "--sweep.design", "tpe", "--sweep.concurrent", "1"
    )
    job.main(["--dry_run", "--resume"])
    assert "20 runs, tpe, 1 at a time" in printed(capsys)
    with pytest.raises(ValueError, match=r"sweep\.concurrent=2: sweep 'old' was started with 1"):
        job.main(["--dry_run", "--resume", "--sweep.concurrent", "2"])


def test_fallback_dataset_is_used_only_if_no_axis_names_the_source(home, monkeypatch):
    """Without a network: digits for MNIST, but not for a level that is called so."""

    def offline(data, home):
        return dataclasses.replace(data, source="digits", download=False)

    monkeypatch.setattr(sweep.prepare, "fetch", offline)
    config, options = cli.parse_sweep([], load_presets(), "latents", "")
    for text, source in (("data.crop=0,24", "digits"), ("data.source=digits,mnist", "mnist")):
        axis = parse_axis(text, config, cli.parse_value)
        assert sweep.base_config(config, options, [axis]).data.source == source


def test_url_with_a_password_can_be_given_again_on_resume(home):
    start_sweep(home, "--sweep.axis", "latent.size=1,2")
    argv = ["--resume", "--dry_run", "--data.root", "http://me:hush@host/a"]
    config, options = cli.parse_sweep(argv, load_presets(), "latents", "")
    config, _ = sweep.load_resumed(config, options)
    assert config.data.root == "http://me:hush@host/a"
    assert config.data.source == "digits"


def test_options_survive_json():
    assert SweepConfig(**json.loads(json.dumps(asdict(SweepConfig(["a=1,2"]))))).axis == ["a=1,2"]
