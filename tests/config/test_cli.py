"""The command line: presets, options, environment, YAML, and one-line errors."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ganray.config import cli, help
from ganray.config.presets import ABOUT, CELEBA, STACKED
from ganray.config.schema import Config, TrainConfig
from ganray.config.serialization import from_dict, to_dict
from ganray.errors import UserError

ROOT = Path(__file__).parents[2]


def parse(*argv, auto="cpu32"):
    return cli.parse(list(argv), CELEBA, lambda _: auto, "about", "cpu32")


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
    config = cli.parse(["mlp"], CELEBA, lambda _: 1 / 0, "", "cpu32")
    assert config.data.size == 0


def test_values_that_are_valid_only_with_the_preset_are_accepted():
    assert parse("mlp", "--data.crop", "128").data.crop == 128
    narrow = cli.parse(
        ["stacked-t3-quarter", "--network.width_D", "1"], STACKED, lambda _: "", "", ""
    )
    assert narrow.network.width_D == 1


def test_a_single_value_is_parsed_without_the_rules_of_the_config():
    assert cli.parse_value("network.width_D", "1") == 1
    assert cli.parse_value("network.conditional", "true") is True
    assert cli.parse_value("latent.offset", "2") == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"latent\.size"):
        cli.parse_value("latent.size", "many")


def test_dashes_and_flags_without_a_value_are_accepted():
    config = parse("--train.checkpoint-every", "5", "--dry_run", "--data.download", "--name", "x")
    assert config.train.checkpoint_every == 5
    assert config.dry_run
    assert config.data.download
    assert not parse("--dry_run", "false").dry_run


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


def test_a_number_of_workers_or_a_range_of_them_may_come_from_anywhere(monkeypatch, tmp_path):
    assert parse("--ray.workers", "2").ray.workers == 2
    assert parse("--ray.workers", "2:8").ray.worker_range() == (2, 8)
    monkeypatch.setenv("GANRAY_RAY__WORKERS", "1:60")
    assert parse().ray.worker_range() == (1, 60)
    path = tmp_path / "run.yaml"
    path.write_text('ray: {workers: "2:8"}\n')
    assert parse("--config", str(path)).ray.is_elastic()
    assert from_dict(to_dict(parse("--name", "n"))) == parse("--name", "n")


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
        (
            ["--train.batch", "3"],
            "--train.batch is not an option; did you mean --train.batch_size",
        ),
        (["--train.kimg", "abc"], "train.kimg=abc must be a number"),
        (["--latent.size", "1.5"], "latent.size=1.5 must be a whole number"),
        (["--data.images", "some"], "data.images=some must be a whole number"),
        (["--train.keep_every", "soon"], "train.keep_every=soon must be a number"),
        (["--ray.workers", "8:2"], "ray.workers=8:2 must be a positive number, or a range of"),
        (["--ray.workers", "0"], "ray.workers=0 must be a positive number"),
        (["--ray.workers", "two"], "ray.workers=two must be a positive number"),
        (["--ray.gpu", "two"], "ray.gpu=two must be true or false"),
        (["--ray.labels", "market=spot"], "ray.labels=market=spot must be names and values in"),
        (["--data.flip", "perhaps"], "data.flip=perhaps must be true or false"),
        (["--train", "3"], "--train is a group of options; see --help train"),
        (["--data.size", "3"], "data.size=3 must be 0 or at least 8"),
        (["--train.kimg"], "--train.kimg needs a value"),
        (["mlp", "train.kimg", "5"], "'train.kimg 5' belongs to no option; options begin with --"),
        (["huge"], "preset=huge is not one of cpu32, limited32, dcgan64,"),
        (["cpu23"], "is not one of cpu32, limited32, dcgan64,"),
        (["cpu23"], "did you mean cpu32?"),
        (["--loss.name", "wgn"], "loss.name=wgn is not one of bce, mse, lsgan, hinge, wgan,"),
        (["--loss.name", "wgn"], "did you mean wgan?"),
        (["--config", __file__], "--config: the file is no YAML of options"),
        (["--config", "/nowhere.yaml"], "config=/nowhere.yaml: no such file"),
        (["--home", "~nouser/x"], "home=~nouser/x: unknown user"),
        (["--help", "bogus"], "--help bogus: no such section (data, latent,"),
        (["--help", "augmen"], "did you mean augment?"),
        (["--help", "lancher"], "did you mean launcher?"),
        (["--help", "train.kimgs"], "did you mean train.kimg?"),
    ],
)
def test_invalid_input_is_rejected_in_one_line(argv, message):
    with pytest.raises(ValueError, match=r".") as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {kimgs: 3}", "--train.kimgs is not an option; did you mean --train.kimg"),
        ("trian: {kimg: 3}", "--trian.kimg is not an option; did you mean --train.kimg"),
        ("nam: faces", "--nam is not an option"),
    ],
)
def test_unknown_option_in_a_file_is_named_with_the_most_similar_one(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse("--config", str(tmp_path / "run.yaml"))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("argv", [["--help"], ["--train.kimg", "-1"], ["--lr", "3"]])
def test_help_and_mistakes_need_neither_torch_nor_ray_nor_mlflow(argv):
    code = (
        f"import sys; sys.argv = ['celeba.py', *{argv}]; import runpy\n"
        f"try: runpy.run_path({str(ROOT / 'jobs/celeba.py')!r}, run_name='__main__')\n"
        "finally: print({'torch', 'ray', 'mlflow'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == (0 if argv == ["--help"] else 2)
    assert result.stderr.strip().endswith("set()")


@pytest.mark.parametrize("columns", [80, 100])
def test_help_has_a_line_for_each_option_that_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    texts = {}
    for argv in (["--help"], ["mlp", "-h"], ["--help", "all"], ["--help", "train"]):
        with pytest.raises(SystemExit) as stop:
            parse(*argv)
        assert stop.value.code == 0
        texts[" ".join(argv)] = text = capsys.readouterr().out
        lines = text.splitlines()
        assert max(len(line) for line in lines if not line.startswith("usage")) <= columns
    for name in CELEBA:
        assert re.search(rf"^  {name} +\S", texts["--help"], re.MULTILINE)
    assert re.search(r"^  --train.kimg +Length of the run in kimg. \[75\]$", texts["--help"], re.M)
    assert re.search(
        r"^  --network.kind +.*: mlp, dcgan, metz, resnet \[mlp\]$", texts["mlp -h"], re.M
    )
    every = {f.name for f in dataclasses.fields(TrainConfig)}
    assert {f"--train.{name}" for name in every} <= set(texts["--help all"].split())
    assert {f"--train.{name}" for name in every} <= set(texts["--help train"].split())
    assert "--train.precision fp32 | bf16 [fp32]" in texts["--help train"]
    assert "weights and optimizer state stay fp32." in " ".join(texts["--help train"].split())
    assert not re.search(r"Literal|<class|ENV", " ".join(texts.values()))


@pytest.mark.parametrize("word", ["--help_all", "--help-all"])
def test_help_all_may_be_one_word(word, capsys):
    for argv in (["--help", "all"], [word]):
        with pytest.raises(SystemExit):
            parse(*argv)
    output = capsys.readouterr().out
    assert output[: len(output) // 2] == output[len(output) // 2 :]


def test_help_describes_every_preset_in_full(capsys):
    with pytest.raises(SystemExit):
        parse("--help", "preset")
    text = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(ABOUT[name].split()) in text for name in CELEBA)


@pytest.mark.parametrize("topic", ["init_from", "init-from", "train.kimg"])
def test_help_explains_a_single_option(capsys, topic):
    with pytest.raises(SystemExit) as stop:
        parse("--help", topic)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"  --{topic.replace('-', '_')}" in text
    assert text.count("\n  --") == 1


def test_help_spells_an_unset_value_as_the_options_do(capsys):
    with pytest.raises(SystemExit):
        parse("--help", "data")
    text = capsys.readouterr().out
    assert "null: all" in text
    assert "None" not in text


def test_each_option_says_in_its_first_sentence_what_it_is():
    """A sentence that begins with a value, such as "raw: pixels", does not."""
    for option in help.options(Config, Config()):
        assert option.text.endswith("."), option.name
        assert not re.match(r"[a-z0-9-]+: ", option.text), option.name


def test_help_ends_silently_if_its_reader_does():
    command = f"{sys.executable} {ROOT / 'jobs/celeba.py'} --help all"
    script = f"({command}; echo code $? >&2) | true"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "code 0\n"


def test_a_line_that_is_too_long_loses_what_is_in_parentheses_first():
    text = "Images per logit of D (PacGAN, Lin et al. 2018), together. And details."
    option = help.Option("network.pack", text, (), "1", "")
    assert help.one_line_each([option]).endswith("Lin et al. 2018), together. [1]")
    assert help._shorten(help._first_sentence(text), 40) == "Images per logit of D, together."


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], None),
        (["cpu32"], None),
        (["--help"], ""),
        (["cpu32", "-h"], ""),
        (["--help", "--dry_run"], ""),
        (["--help", "init-from"], "init_from"),
        (["--help-all"], "all"),
    ],
)
def test_the_topic_of_help_is_the_next_word(argv, expected):
    assert help.topic(argv) == expected


def test_print_config_prints_a_file_that_gives_the_same_config(tmp_path):
    options = ["mlp", "--name", "n", "--ray.workers", "2:8"]
    command = [sys.executable, str(ROOT / "jobs/celeba.py"), *options]
    result = subprocess.run(
        [*command, "--print_config"], capture_output=True, text=True, check=True
    )
    path = tmp_path / "run.yaml"
    path.write_text(result.stdout)
    assert parse("--config", str(path)) == parse(*options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GANRAY_TRAIN__KIMGS", "3", "$GANRAY_TRAIN__KIMGS is not an option; did you mean"),
        ("GANRAY_HOME", "", "$GANRAY_HOME is empty; name a folder"),
    ],
)
def test_variables_without_effect_are_rejected(monkeypatch, capsys, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: None)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


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
