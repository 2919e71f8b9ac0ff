"""Schedules: closed forms, the same for any batch size, applied to everything they govern."""

import math
from dataclasses import replace

import pytest
import torch

from ganray.config.schema import (
    AugmentConfig,
    Config,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from ganray.errors import UserError
from ganray.training import journal
from ganray.training.launch import launch
from ganray.training.schedules import cosine, scheduled_values
from ganray.training.state import TrainState, read_state
from tests.conftest import tiny_config

R3GAN = ScheduleConfig(
    kimg=1, lr_factor=0.25, beta2=0.99, gamma_factor=0.1, ema_kimg=500, augment_p=0.3
)


def scheduled_config(home, schedule=R3GAN, **train):
    """Tiny config with all schedules, over the first 120 of 240 images."""
    config = tiny_config(home, **({"log_every": 0.012, "ema_kimg": 0} | train))
    return replace(
        config,
        optimizer=OptimizerConfig(lr_G=2e-4, lr_D=4e-4, beta1=0.0, beta2=0.9),
        loss=replace(config.loss, r1_gamma=2.0, r2_gamma=1.0),
        augment=AugmentConfig(policy="ada"),
        schedule=replace(schedule, kimg=0.12),
    )


def test_values_of_r3gan_at_the_start_the_middle_and_the_end(tmp_path):
    config = scheduled_config(tmp_path)
    start, middle, end = (scheduled_values(config, images) for images in (0, 60, 120))
    assert (start.lr_G, start.lr_D, start.beta2) == (2e-4, 4e-4, 0.9)
    assert (start.r1_gamma, start.r2_gamma, start.ema_kimg, start.augment_p) == (2, 1, 0, 0)
    assert (end.lr_G, end.lr_D, end.beta2) == (0.25 * 2e-4, 0.25 * 4e-4, 0.99)
    assert (end.r1_gamma, end.r2_gamma, end.ema_kimg, end.augment_p) == (0.2, 0.1, 500, 0.3)
    assert middle.lr_G == pytest.approx((start.lr_G + end.lr_G) / 2)
    assert middle.augment_p == pytest.approx(0.15)
    assert scheduled_values(config, 10**9) == end


def test_half_a_cosine():
    values = [cosine(3.0, 1.0, progress) for progress in (0, 1 / 3, 1 / 2, 2 / 3, 1)]
    assert values == pytest.approx([3, 2 + math.cos(math.pi / 3), 2, 1.5, 1])
    assert (values[0], values[-1]) == (3, 1)


def test_values_change_a_hundred_times_whatever_the_batch_size(tmp_path):
    config = replace(scheduled_config(tmp_path), schedule=replace(R3GAN, kimg=10))
    values = [scheduled_values(config, images) for images in range(10_001)]
    assert len(set(values)) == 101
    assert values[0] == values[99] != values[100]
    assert values[9_999] != values[10_000]


def test_without_schedules_values_are_those_of_the_options():
    config = Config(train=TrainConfig(kimg=1))
    values = {scheduled_values(config, images) for images in (0, 500, 1_000, 5_000)}
    (value,) = values
    assert (value.lr_G, value.beta2, value.ema_kimg) == (2e-4, 0.999, 10)


def test_schedules_reach_the_optimizers_the_penalties_and_the_augmentation(tmp_path):
    state = TrainState(scheduled_config(tmp_path), (16, 16, 3), torch.device("cpu"))
    state.step = 10  # 120 images
    state.apply_schedules()
    (group,), (group_D,) = state.G_optimizer.param_groups, state.D_optimizer.param_groups
    assert (group["lr"], group_D["lr"]) == (0.25 * 2e-4, 0.25 * 4e-4)
    assert group["betas"] == group_D["betas"] == (0.0, 0.99)
    assert state.D_objective.loss.r1_gamma == 0.2
    assert state.D_objective.loss.r2_gamma == 0.1
    assert state.augment_p.item() == pytest.approx(0.3)


def test_G_ema_follows_its_schedule(squares, tmp_path):
    """A half-life of 0 copies G; later G_ema is an average."""
    for kimg, is_copy in ((0.012, True), (0.12, False)):
        state = read_state(launch(scheduled_config(tmp_path / str(kimg), kimg=kimg), squares))
        pairs = zip(state["G"].values(), state["G_ema"].values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == is_copy


def test_the_half_life_is_that_of_the_schedule(tmp_path, monkeypatch):
    """Without a schedule it is at most 5 % of the images seen."""
    half_lives = {}
    for name, schedule in {"scheduled": R3GAN, "constant": ScheduleConfig()}.items():
        schedule = replace(schedule, kimg=0.12, augment_p=None)
        config = replace(tiny_config(tmp_path, ema_kimg=1), schedule=schedule)
        state = TrainState(config, (16, 16, 3), torch.device("cpu"))
        state.step = 10
        state.apply_schedules()
        before = state._averaged[0].clone()
        state._latest[0].add_(1.0)
        state.advance()
        moved = (state._averaged[0] - before).mean().item()
        half_lives[name] = 12 / -math.log2(1 - moved)
    assert half_lives["scheduled"] == pytest.approx(500_000, rel=0.05)
    assert half_lives["constant"] == pytest.approx(0.05 * 132, rel=0.01)


def test_the_probability_is_that_of_the_schedule_after_resuming(squares, tmp_path):
    """Of a longer run, whose schedule has hardly begun, and not that of the checkpoint."""
    config = scheduled_config(tmp_path, kimg=0.12)
    config = replace(config, schedule=replace(config.schedule, kimg=None))
    checkpoint = launch(config, squares)
    assert read_state(checkpoint)["augment_p"].item() > 0.25
    longer = replace(config, train=replace(config.train, kimg=100))
    state = TrainState(longer, (16, 16, 3), torch.device("cpu"))
    state.load(checkpoint)
    state.apply_schedules()
    assert state.augment_p.item() == 0


def test_values_that_change_are_logged(squares, tmp_path):
    config = scheduled_config(tmp_path)
    launch(config, squares)
    images, rates = journal.history(config.run_folder(), "schedule/lr_G")
    # The step that ends with `images` began with 12 fewer.
    expected = [scheduled_values(config, int(count) - 12).lr_G for count in images]
    assert rates.tolist() == pytest.approx(expected)
    assert len(set(expected)) == 11
    assert len(journal.history(config.run_folder(), "schedule/augment_p")[0]) == 20
    plain = tiny_config(tmp_path, name="plain")
    launch(plain, squares)
    assert len(journal.history(plain.run_folder(), "schedule/lr_G")[0]) == 0


def test_an_adaptive_augmentation_follows_the_sign_of_D(squares, tmp_path):
    """D separates 100 images quickly: from then on p rises by 12 / 240 per step."""
    config = tiny_config(tmp_path, log_every=0.012)
    augment = AugmentConfig(policy="ada", target=0.6, adapt_kimg=0.24)
    optimizer = replace(config.optimizer, lr_D=1e-2)
    config = replace(config, augment=augment, optimizer=optimizer)
    launch(config, squares)
    p, r_t = (
        journal.history(config.run_folder(), name)[1]
        for name in ("schedule/augment_p", "discriminator/overfitting")
    )
    expected = 0.0
    for value, sign in zip(p, r_t, strict=True):
        expected = min(max(expected + (0.05 if sign > 0.6 else -0.05), 0.0), 1.0)
        assert value == pytest.approx(expected, abs=1e-6)
    assert p.max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": ScheduleConfig(beta2=0.99), "optimizer": OptimizerConfig("sgd")},
            r"schedule.beta2=0.99 needs optimizer.name adam, adamw or lion",
        ),
        (
            {"schedule": ScheduleConfig(augment_p=0.3)},
            r"schedule.augment_p=0.3 needs augment.policy=ada",
        ),
        ({"augment": AugmentConfig(policy="ada")}, r"augment.policy=ada changes no image"),
        ({"augment": AugmentConfig(p=0.2)}, r"need augment.policy=ada, not none; add"),
        (
            {"augment": AugmentConfig("ada", target=0.6), "loss": LossConfig("relativistic")},
            r"needs a loss.name whose D is undecided at logit 0, not relativistic",
        ),
    ],
)
def test_schedules_without_effect_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes)
