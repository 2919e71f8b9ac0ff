"""The console script, which runs the same jobs as jobs/*.py, without a checkout."""

import inspect
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ganray.commands import main
from ganray.data.format import Manifest
from ganray.errors import UserError


def test_each_file_in_jobs_is_a_job():
    files = {path.stem for path in (Path(__file__).parents[2] / "jobs").glob("*.py")}
    assert set(main.JOBS) == files


def test_a_job_runs_outside_a_checkout(tmp_path):
    argv = ["shard", "digits", "--out", str(tmp_path / "set"), "--images", "100"]
    command = [sys.executable, "-m", "ganray.commands.main", *argv]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "100 images of 8x8x1" in result.stdout
    assert Manifest.read(tmp_path / "set").num_images == 100


def test_help_lists_the_jobs(capsys):
    main._dispatch(["--help"])
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in main.JOBS)


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", [*main.JOBS, ""])
def test_help_fits_the_terminal(name, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["ganray", name, "--help"])
    with suppress(SystemExit):
        main._dispatch([name, "--help"] if name else ["--help"])
    output = capsys.readouterr().out
    assert output.startswith(f"usage: ganray {name}".rstrip())
    assert max(map(len, output.splitlines())) <= columns


@pytest.mark.parametrize("name", main.JOBS)
def test_the_first_screen_of_help_has_at_most_50_lines_and_all_has_the_rest(
    name, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for topic in ([], ["all"]):
        with pytest.raises(SystemExit):
            main.JOBS[name](["--help", *topic])
        texts.append(capsys.readouterr().out)
    first, everything = texts
    assert first.count("\n") <= 50
    assert "--help all" in first
    description = inspect.getdoc(main.JOBS[name])
    assert set(description.split()) <= set(everything.split())
    options = set(re.findall(r"^  (--\S+)", first, re.MULTILINE))
    assert options <= set(re.findall(r"^  (--\S+)", everything, re.MULTILINE))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shard", "--help", "label"], "--help label: no such option; did you mean labels?"),
        (["shard", "--help", "celeba"], "--help celeba: no such option"),
    ],
)
def test_help_of_an_unknown_option_is_an_error(argv, message):
    with pytest.raises(UserError, match=message):
        main.JOBS[argv[0]](argv[1:])


def test_help_explains_one_option_of_a_small_job(capsys):
    with pytest.raises(SystemExit):
        main.shard(["--help", "bad-images"])
    assert capsys.readouterr().out.startswith("  --bad_images error | skip [error]\n")


def test_an_unknown_job_is_rejected(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ganray", "celebs"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert "error: 'celebs' is not a job; name one of celeba, mnist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sweep", "--sweep.axis", "latent.sise=1"], "did you mean latent.size?"),
        (["evaluate", "facse"], "RUN='facse' must be"),
        (["explore", "facse"], "did you mean faces?"),
        (["shard", "celebs"], "did you mean celeba?"),
        (["deploy", "slrum"], "did you mean slurm?"),
    ],
)
def test_mistakes_of_every_job_need_neither_torch_nor_ray_nor_mlflow(argv, message, tmp_path):
    (tmp_path / "runs" / "faces" / "checkpoint_0000000001").mkdir(parents=True)
    code = (
        f"import sys; sys.argv = ['ganray', *{argv}]; from ganray.commands import main\n"
        "try: main.main()\n"
        "finally: print({'torch', 'ray', 'mlflow'} & set(sys.modules), file=sys.stderr)"
    )
    environment = os.environ | {"GANRAY_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.strip().endswith("set()")


def test_a_bug_keeps_its_traceback(tmp_path):
    code = "from ganray.config import cli; cli.run(lambda _: [].index(1))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ValueError: 1 is not in list" in result.stderr
