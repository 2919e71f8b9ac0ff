"""Run folders and what workers leave in them."""

import pytest
import torch

from ganray.config.schema import TrainConfig
from ganray.errors import UserError
from ganray.training import loop, updates
from ganray.training.launch import ERROR_FILE, choose_kernels, create_run_folder, launch
from ganray.training.loop import Diverged
from ganray.training.state import CONFIG_FILE


def test_an_unexpected_error_leaves_its_traceback_in_the_run_folder(
    config, squares, monkeypatch, capsys
):
    def broken_step(*args, **kwargs):
        raise KeyError("missing statistic")

    monkeypatch.setattr(updates, "generator_step", broken_step)
    with pytest.raises(KeyError, match="missing statistic"):
        launch(config, str(squares))
    path = config.run_folder() / ERROR_FILE
    assert f"ERROR: training failed; the traceback is in {path}" in capsys.readouterr().out
    text = path.read_text()
    assert "rank 0 of 1" in text
    assert "in broken_step" in text
    assert text.rstrip().endswith("KeyError: 'missing statistic'")


def test_a_resumed_run_has_no_old_traceback(config):
    create_run_folder(config)
    (config.run_folder() / ERROR_FILE).write_text("rank 0 of 1")
    create_run_folder(config)
    assert not (config.run_folder() / ERROR_FILE).exists()


def test_a_user_error_leaves_no_traceback(config, squares, monkeypatch):
    def diverge(*args, **kwargs):
        raise Diverged("loss/D is nan")

    monkeypatch.setattr(loop, "check_finite", diverge)
    with pytest.raises(UserError, match="loss/D is nan"):
        launch(config, str(squares))
    assert not (config.run_folder() / ERROR_FILE).exists()


def test_a_damaged_config_file_is_reported_with_its_path(config):
    create_run_folder(config)
    path = config.run_folder() / CONFIG_FILE
    path.write_text("{")
    with pytest.raises(UserError, match=r"config.json: damaged .*; delete its folder"):
        create_run_folder(config)


@pytest.fixture
def _torch_settings(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark
    yield
    cudnn.allow_tf32, cudnn.benchmark = before
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_torch_settings")
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_of_the_configured_precision_and_determinism(precision, deterministic):
    choose_kernels(TrainConfig(matmul_precision=precision, deterministic=deterministic))
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == (precision == "high")
    assert torch.backends.cudnn.benchmark == (not deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
