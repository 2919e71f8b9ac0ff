"""The house: who may import whom, and jobs that stay thin stories."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def test_import_ganray_has_no_side_effect():
    code = "import sys, ganray; print({'ray', 'mlflow', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_core_trains_with_ray_and_mlflow_blocked():
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None\n"
        "import ganray.training.launch, ganray.training.plan, ganray.training.run_figures\n"
        "import ganray.data.prepare, ganray.config.cli, ganray.config.presets"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_jobs_are_thin(job):
    source = job.read_text()
    assert source.count("\n") < 100
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"torch", "ray", "mlflow", "numpy"}


def test_each_vendor_stays_in_files_named_for_it():
    homes = {"ray": "ray_", "mlflow": "mlflow_", "jsonargparse": "cli"}
    for path in (ROOT / "ganray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for vendor, home in homes.items():
                if any(name.split(".")[0] == vendor for name in names):
                    assert path.stem.startswith(home), f"{path} imports {vendor}"


def test_the_stated_floors_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
