"""Examples and commands of the READMEs work, and their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from ganray.commands import deploy, main
from ganray.config import cli
from ganray.config.commands import DeployConfig, EvaluateConfig, ExploreConfig, ShardConfig
from ganray.config.presets import CELEBA, MNIST, STACKED, SWEEPS

ROOT = Path(__file__).parents[1]
READMES = sorted(
    path
    for pattern in ("*.md", ".github/*.md", "ganray/*/README.md", "tests/benchmarks/README.md")
    for path in ROOT.glob(pattern)
)


def commands() -> list[str]:
    found = []
    for path in READMES:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.S):
            block = block.replace("\\\n", " ")
            found += re.findall(r"python jobs/\w+\.py[^\n&#]*", block)
    for job in main.JOBS.values():
        text = (job.__doc__ or "").replace("\\\n", " ")
        found += re.findall(r"python (jobs/\w+\.py[^\n#]*)", text)
    return sorted({command.removeprefix("python ").strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, monkeypatch):
    monkeypatch.setenv("GANRAY_HOME", "/tmp/home")
    job, *words = shlex.split(command)
    match Path(job).stem:
        case "sweep":
            config, options = cli.parse_sweep(
                words, SWEEPS | CELEBA | MNIST | STACKED, "latents", ""
            )
            from ganray.sweeps.axes import parse_axis

            for axis in options.axis:
                parse_axis(axis, config, cli.parse_value)
        case "evaluate":
            cli.parse_command(words, EvaluateConfig, ("run",), {}, "")
        case "explore":
            cli.parse_command(words, ExploreConfig, ("run",), {}, "")
        case "shard":
            cli.parse_command(words, ShardConfig, ("source", "path"), {}, "")
        case "deploy":
            words = words[: words.index(">")]
            deploy.render(cli.parse_command(words, DeployConfig, ("target",), {}, ""))
        case "celeba":
            cli.parse(words, CELEBA, lambda _: "cpu32", "", "cpu32")
        case "mnist":
            cli.parse(words, MNIST | STACKED, lambda _: "normal-100", "", "")
        case other:
            pytest.fail(f"no such job: {other}")


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_exist(path: Path):
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def example(readme: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.S)
    return code


def test_the_example_of_the_data_readme_runs(squares, tmp_path, monkeypatch):
    (tmp_path / "celeba-64").symlink_to(squares)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example("ganray/data/README.md").replace("range(1000)", "range(3)"), names)
    assert names["step"] == 2
    assert names["x"].shape == (128, 3, 16, 16)
    assert -1 <= names["x"].min() < names["x"].max() <= 1


def test_the_example_of_the_evaluation_readme_runs(capsys):
    names: dict[str, object] = {}
    exec(example("ganray/evaluation/README.md"), names)
    assert names["report"]["coverage"] < 0.5
    assert capsys.readouterr().out
