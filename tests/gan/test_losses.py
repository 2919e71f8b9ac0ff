"""Losses and penalties against closed forms and torch's functions."""

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
    half = torch.full((4,), 0.5)  # an undecided D on the scale of these logits
    assert loss.D(half, half).tolist() == loss.G(half, half).tolist() == [loss.ideal] * 4


def test_wgan_losses_are_differences_of_logits():
    loss, real, fake = LOSSES["wgan"], torch.tensor([3.0]), torch.tensor([-1.0])
    assert loss.D(real, fake).item() == -4
    assert loss.G(real, fake).item() == 1


def test_hinge_is_zero_beyond_the_margins():
    assert LOSSES["hinge"].D(torch.tensor([1.5]), torch.tensor([-2.0])).item() == 0
    assert LOSSES["hinge"].D(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_paired_if_that_of_G_depends_on_the_real_logits(name):
    loss, fake = LOSSES[name], torch.randn(8)
    assert loss.paired == (not torch.equal(loss.G(fake, fake), loss.G(fake + 1, fake)))


def test_the_relativistic_loss_depends_on_the_difference_only():
    real, fake = torch.randn(5), torch.randn(5)
    loss = LOSSES["relativistic"]
    torch.testing.assert_close(loss.D(real + 7, fake + 7), loss.D(real, fake))


def test_r1_of_a_linear_D_is_its_squared_weight_norm():
    w, real = torch.tensor([1.0, 2.0, 2.0]), torch.randn(5, 3, requires_grad=True)
    torch.testing.assert_close(gradient_penalty(real, real @ w), torch.full((5,), 9.0))


def test_r1_has_a_gradient():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    real = torch.randn(3, 2, requires_grad=True)
    gradient_penalty(real, real @ w).mean().backward()
    torch.testing.assert_close(w.grad, torch.tensor([2.0, 4.0]))  # d |w|^2 / dw


def test_gp_of_a_linear_D_is_its_squared_distance_from_gradient_norm_1():
    w, alpha = torch.tensor([1.0, 2.0, 2.0]), torch.rand(5)
    mixed = interpolate_images(torch.randn(5, 3), torch.randn(5, 3), alpha)
    torch.testing.assert_close(wgan_gp_penalty(mixed, mixed @ w), torch.full((5,), (3.0 - 1) ** 2))


def test_a_constant_D_has_a_gp_of_1_and_a_gradient():
    w = torch.zeros(2, requires_grad=True)
    mixed = interpolate_images(torch.randn(3, 2), torch.randn(3, 2), torch.rand(3))
    penalty = wgan_gp_penalty(mixed, mixed @ w)
    assert penalty.tolist() == [1, 1, 1]
    penalty.mean().backward()
    assert w.grad.isfinite().all()


def test_alpha_0_gives_the_fake_image_and_alpha_1_the_real_one():
    real, fake = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    mixed = interpolate_images(real, fake, torch.tensor([0.0, 0.5, 1.0]))
    expected = torch.stack([fake[0], (real[1] + fake[1]) / 2, real[2]])
    torch.testing.assert_close(mixed.detach(), expected)
    assert mixed.requires_grad


def test_the_gradient_of_a_packs_logit_includes_all_its_images():
    w, real = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.randn(6, 2, requires_grad=True)
    logits = real.reshape(3, 4) @ w
    torch.testing.assert_close(gradient_penalty(real, logits), torch.full((3,), 25.0))
