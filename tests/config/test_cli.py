"""The command line: presets, overrides, environment, YAML, and errors of one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from ganray.config import cli
from ganray.config.presets import CELEBA, STACKED

ROOT = Path(__file__).parents[2]


def parse(*argv, auto="cpu32"):
    return cli.parse(list(argv), CELEBA, auto=lambda _: auto, description="about")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GANRAY_HOME", str(tmp_path / "home"))


def test_the_first_word_names_a_preset_and_options_override_it():
    config = parse("mlp", "--train.kimg", "3", "--latent.size=7")
    assert (config.preset, config.train.kimg, config.latent.size) == ("mlp", 3, 7)
    assert config.network == CELEBA["mlp"].network


def test_without_a_preset_the_hardware_decides():
    assert parse(auto="dcgan64").preset == "dcgan64"
    assert parse("--train.kimg", "3", auto="cpu32").data.size == 32


def test_a_named_preset_does_not_ask_for_the_hardware():
    config = cli.parse(["mlp"], CELEBA, auto=lambda _: 1 / 0, description="")
    assert config.data.size == 0


def test_what_goes_together_with_the_preset_alone_is_accepted():
    assert parse("mlp", "--data.crop", "128").data.crop == 128
    narrow = cli.parse(["stacked-t3-quarter", "--network.width_D", "1"], STACKED, lambda _: "", "")
    assert narrow.network.width_D == 1


def test_a_value_is_read_without_the_rules_of_the_config_it_is_for():
    assert cli.parse_value("network.width_D", "1") == 1
    assert cli.parse_value("network.conditional", "true") is True
    assert cli.parse_value("latent.offset", "2") == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"latent\.size"):
        cli.parse_value("latent.size", "many")


def test_dashes_and_bare_flags_are_what_people_type():
    config = parse("--train.checkpoint-every", "5", "--dry-run", "--data.download", "--name", "x")
    assert config.train.checkpoint_every == 5
    assert config.dry_run
    assert config.data.download
    assert not parse("--dry-run", "false").dry_run


def test_reals_are_named_field_by_field():
    config = parse(
        "--evaluation.reference.images", "null", "--evaluation.reference.flip", "--name", "x"
    )
    assert config.evaluation.reference == {"images": None, "flip": True}


def test_environment_then_file_then_options(monkeypatch, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: mlp\ntrain:\n  kimg: 4\n  batch_size: 6\n")
    monkeypatch.setenv("GANRAY_TRAIN__BATCH_SIZE", "5")
    monkeypatch.setenv("GANRAY_TRAIN__RNG_SEED", "9")
    config = parse("--config", str(path), "--train.kimg", "2")
    train = config.train
    assert (config.preset, train.kimg, train.batch_size, train.rng_seed) == ("mlp", 2, 6, 9)


def test_the_home_is_absolute_and_comes_from_the_environment(tmp_path):
    assert parse().home == tmp_path / "home"
    assert parse("--home", "here").home == Path.cwd() / "here"


def test_a_run_without_a_name_gets_one_that_tells_preset_and_time():
    assert parse().name.startswith("cpu32-20")
    assert parse("--name", "mine").name == "mine"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.batchsize", "3"], "did you mean --train.batch_size"),
        (["--train.kimg", "abc"], "train.kimg"),
        (["--data.size", "3"], "data.size=3 must be 0 or at least 8"),
        (["huge"], "preset='huge' is not one of cpu32, dcgan64, mlp"),
        (["--loss.name", "wasserstein"], "wasserstein"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--home", "~nouser/x"], "home=~nouser/x: unknown user"),
    ],
)
def test_bad_input_is_one_line(argv, message):
    with pytest.raises(ValueError, match=r".") as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_help_is_quick_and_names_every_preset_without_torch_or_ray():
    code = (
        "import sys; sys.argv = ['celeba.py', '--help']; import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'jobs/celeba.py')!r}, run_name='__main__')\n"
        "finally: print({'torch', 'ray', 'mlflow'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("set()")
    for name in CELEBA:
        assert f"  {name} " in done.stdout
    assert "The same name resumes the run" in " ".join(done.stdout.split())
    assert "Half-life in kimg of G_ema" in done.stdout


def test_print_config_writes_a_file_that_gives_the_same_config(tmp_path):
    command = [sys.executable, str(ROOT / "jobs/celeba.py"), "mlp", "--name", "n"]
    done = subprocess.run([*command, "--print_config"], capture_output=True, text=True, check=True)
    path = tmp_path / "run.yaml"
    path.write_text(done.stdout)
    assert parse("--config", str(path)) == parse("mlp", "--name", "n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_unwinds_the_stack_and_says_how_to_go_on(name, code):
    """`finally` runs, which is where an MLflow run gets its KILLED."""
    program = (
        "import os, signal\nfrom ganray.config import cli\n"
        # A shell starts background commands, and so perhaps these tests, with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main(argv):\n"
        f"    try: os.kill(os.getpid(), signal.{name}); signal.pause()\n"
        "    finally: print('closed')\n"
        "cli.run(main)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout.strip() == "closed"
    assert "Traceback" not in done.stderr
