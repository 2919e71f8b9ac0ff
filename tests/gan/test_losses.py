"""Losses and penalties against closed forms and torch's own functions."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from ganray.gan.losses import LOSSES, gradient_penalty, interpolate_images, wgan_gp_penalty

ZERO = torch.zeros(4)


@pytest.mark.parametrize("name", ["bce", "mse", "relativistic"])
def test_an_undecided_discriminator_scores_the_ideal(name):
    loss = LOSSES[name]
    torch.testing.assert_close(loss.D(ZERO, ZERO), torch.full((4,), loss.ideal))
    torch.testing.assert_close(loss.G(ZERO, ZERO), torch.full((4,), loss.ideal))


def test_ideals_of_the_source_text():
    assert LOSSES["bce"].ideal == math.log(2)
    assert LOSSES["mse"].ideal == 0.25


def test_bce_is_torchs_mean_of_both_halves():
    real, fake = torch.randn(8), torch.randn(8)
    one, nought = torch.ones(8), torch.zeros(8)
    expected = (bce(real, one, reduction="none") + bce(fake, nought, reduction="none")) / 2
    torch.testing.assert_close(LOSSES["bce"].D(real, fake), expected)
    torch.testing.assert_close(LOSSES["bce"].G(real, fake), bce(fake, one, reduction="none"))


def test_mse_is_the_squared_error_of_the_probability():
    real, fake = torch.tensor([math.log(3)]), torch.tensor([-math.log(3)])  # 0.75 and 0.25
    torch.testing.assert_close(LOSSES["mse"].D(real, fake), torch.tensor([0.0625]))
    torch.testing.assert_close(LOSSES["mse"].G(real, fake), torch.tensor([0.5625]))


def test_lsgan_is_the_squared_error_of_the_raw_logit():
    loss, real, fake = LOSSES["lsgan"], torch.tensor([3.0]), torch.tensor([-1.0])
    assert loss.D(real, fake).item() == ((3 - 1) ** 2 + 1) / 2
    assert loss.G(real, fake).item() == (-1 - 1) ** 2
    half = torch.full((4,), 0.5)  # which is undecided, on the scale of these logits
    assert loss.D(half, half).tolist() == loss.G(half, half).tolist() == [loss.ideal] * 4


def test_wgans_D_loses_what_it_does_not_tell_apart():
    loss, real, fake = LOSSES["wgan"], torch.tensor([3.0]), torch.tensor([-1.0])
    assert loss.D(real, fake).item() == -4
    assert loss.G(real, fake).item() == 1


def test_hinge_is_zero_beyond_the_margins():
    assert LOSSES["hinge"].D(torch.tensor([1.5]), torch.tensor([-2.0])).item() == 0
    assert LOSSES["hinge"].D(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1


def test_relativistic_only_sees_the_difference():
    real, fake = torch.randn(5), torch.randn(5)
    loss = LOSSES["relativistic"]
    torch.testing.assert_close(loss.D(real + 7, fake + 7), loss.D(real, fake))


def test_r1_of_a_linear_critic_is_its_squared_weight_norm():
    w, real = torch.tensor([1.0, 2.0, 2.0]), torch.randn(5, 3, requires_grad=True)
    torch.testing.assert_close(gradient_penalty(real, real @ w), torch.full((5,), 9.0))


def test_r1_can_be_trained_through():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    real = torch.randn(3, 2, requires_grad=True)
    gradient_penalty(real, real @ w).mean().backward()
    torch.testing.assert_close(w.grad, torch.tensor([2.0, 4.0]))  # d |w|^2 / dw


def test_gp_of_a_linear_critic_is_its_slopes_distance_from_1():
    w, share = torch.tensor([1.0, 2.0, 2.0]), torch.rand(5)
    middle = interpolate_images(torch.randn(5, 3), torch.randn(5, 3), share)
    torch.testing.assert_close(
        wgan_gp_penalty(middle, middle @ w), torch.full((5,), (3.0 - 1) ** 2)
    )


def test_a_flat_critic_has_a_gp_of_1_and_a_gradient():
    w = torch.zeros(2, requires_grad=True)
    middle = interpolate_images(torch.randn(3, 2), torch.randn(3, 2), torch.rand(3))
    penalty = wgan_gp_penalty(middle, middle @ w)
    assert penalty.tolist() == [1, 1, 1]
    penalty.mean().backward()
    assert w.grad.isfinite().all()


def test_a_share_of_0_is_the_fake_and_of_1_the_real():
    real, fake = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    middle = interpolate_images(real, fake, torch.tensor([0.0, 0.5, 1.0]))
    expected = torch.stack([fake[0], (real[1] + fake[1]) / 2, real[2]])
    torch.testing.assert_close(middle.detach(), expected)
    assert middle.requires_grad


def test_the_slope_of_a_packs_logit_is_that_at_all_its_images():
    w, real = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.randn(6, 2, requires_grad=True)
    logits = real.reshape(3, 4) @ w
    torch.testing.assert_close(gradient_penalty(real, logits), torch.full((3,), 25.0))
