"""The command line: presets, options, environment, YAML, and one-line errors."""

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
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("GANRAY_HOME", str(tmp_path / "home"))


def test_options_override_the_preset_named_first():
    config = parse("mlp", "--train.kimg", "3", "--latent.size=7")
    assert (config.preset, config.train.kimg, config.latent.size) == ("mlp", 3, 7)
    assert config.network == CELEBA["mlp"].network


def test_the_preset_depends_on_the_hardware_unless_named():
    assert parse(auto="dcgan64").preset == "dcgan64"
    assert parse("--train.kimg", "3", auto="cpu32").data.size == 32
    config = cli.parse(["mlp"], CELEBA, auto=lambda _: 1 / 0, description="")
    assert config.data.size == 0


def test_values_that_are_valid_only_with_the_preset_are_accepted():
    assert parse("mlp", "--data.crop", "128").data.crop == 128
    narrow = cli.parse(["stacked-t3-quarter", "--network.width_D", "1"], STACKED, lambda _: "", "")
    assert narrow.network.width_D == 1


def test_a_single_value_is_parsed_without_the_rules_of_the_config():
    assert cli.parse_value("network.width_D", "1") == 1
    assert cli.parse_value("network.conditional", "true") is True
    assert cli.parse_value("latent.offset", "2") == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"latent\.size"):
        cli.parse_value("latent.size", "many")


def test_dashes_and_flags_without_a_value_are_accepted():
    config = parse("--train.checkpoint-every", "5", "--dry-run", "--data.download", "--name", "x")
    assert config.train.checkpoint_every == 5
    assert config.dry_run
    assert config.data.download
    assert not parse("--dry-run", "false").dry_run


def test_reference_fields_are_options():
    config = parse(
        "--evaluation.reference.images", "null", "--evaluation.reference.flip", "--name", "x"
    )
    assert config.evaluation.reference == {"images": None, "flip": True}


def test_options_override_the_file_which_overrides_the_environment(monkeypatch, tmp_path):
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


def test_the_default_name_consists_of_preset_and_time():
    assert parse().name.startswith("cpu32-20")
    assert parse("--name", "a").name == "a"


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
def test_invalid_input_is_rejected_in_one_line(argv, message):
    with pytest.raises(ValueError, match=r".") as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_help_lists_the_presets_without_importing_torch_ray_or_mlflow():
    code = (
        "import sys; sys.argv = ['celeba.py', '--help']; import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'jobs/celeba.py')!r}, run_name='__main__')\n"
        "finally: print({'torch', 'ray', 'mlflow'} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr.strip().endswith("set()")
    for name in CELEBA:
        assert f"  {name} " in result.stdout
    assert "The same name resumes the run" in " ".join(result.stdout.split())
    assert "Half-life in kimg of G_ema" in result.stdout


def test_print_config_prints_a_file_that_gives_the_same_config(tmp_path):
    command = [sys.executable, str(ROOT / "jobs/celeba.py"), "mlp", "--name", "n"]
    result = subprocess.run(
        [*command, "--print_config"], capture_output=True, text=True, check=True
    )
    path = tmp_path / "run.yaml"
    path.write_text(result.stdout)
    assert parse("--config", str(path)) == parse("mlp", "--name", "n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_unwinds_the_stack(name, code):
    """`finally` blocks run, one of which sets the status of the MLflow run to KILLED."""
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
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == code
    assert result.stdout.strip() == "closed"
    assert "Traceback" not in result.stderr
