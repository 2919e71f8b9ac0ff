"""Augmentation against grid_sample, closed forms of colors, and exact second derivatives."""

import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from ganray.config.schema import AugmentConfig, LossConfig
from ganray.gan import augmentation
from ganray.gan.augmentation import DRAWS, Augmentation
from ganray.gan.losses import gradient_penalty
from ganray.gan.step import DiscriminatorObjective, GeneratorObjective

POLICIES = ["ada", "diffaugment", "diffaugment-geometry"]


def augment(images, policy="ada", p=1.0, pixel_min=-1.0, seed=0):
    draws = torch.rand(len(images), DRAWS, generator=torch.Generator().manual_seed(seed))
    return Augmentation(AugmentConfig(policy=policy), pixel_min)(images, draws, torch.tensor(p))


def images(count=4, channels=3, height=16, width=16):
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(count, channels, height, width, generator=generator) - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_ada_with_probability_0_changes_no_pixel(channels):
    same = augment(images(channels=channels), p=0.0)
    torch.testing.assert_close(same, images(channels=channels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_own_draws_only(policy, channels):
    x = images(channels=channels)
    changed = augment(x, policy)
    assert changed.shape == x.shape
    assert (changed - x).abs().amax((1, 2, 3)).min() > 0.1
    assert torch.equal(changed, augment(x, policy))
    assert not torch.equal(changed, augment(x, policy, seed=1))
    draws = torch.rand(4, DRAWS, generator=torch.Generator().manual_seed(0))
    alone = Augmentation(AugmentConfig(policy=policy), -1.0)(x[2:3], draws[2:3], torch.tensor(1.0))
    torch.testing.assert_close(alone, changed[2:3])


def test_each_change_is_made_with_probability_p():
    """Unchanged images: of 12 events, rotation is one, and colors have half of the probability.

    Mirroring, rotation by quarters and shifts leave an image as it is in one of 2, 4 and 25 cases,
    the inversion of luma in one of 2.
    """
    x = torch.arange(256.0).reshape(1, 1, 16, 16).expand(20_000, 3, -1, -1) / 128 - 1
    x = x + torch.tensor([0.0, 0.05, 0.1])[:, None, None]
    p = 0.2
    unchanged = (augment(x, p=p) - x).abs().amax((1, 2, 3)) < 1e-4
    geometry = (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * 24 / 25) * (1 - p) ** 4
    color = (1 - p / 2) ** 4 * (1 - p / 4)
    expected = geometry * color * (1 - p)
    error = math.sqrt(expected * (1 - expected) / len(x))
    assert unchanged.float().mean().item() == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("reflects", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 14)])
def test_interpolation_equals_grid_sample(reflects, height, width):
    x = images(height=height, width=width)
    transform = torch.eye(3) + 0.4 * torch.randn(
        4, 3, 3, generator=torch.Generator().manual_seed(2)
    )
    transform[:, :2, 2] *= 8
    transform[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    # grid_sample's positions are in half sides.
    to_pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))
    theta = torch.linalg.inv(to_pixels) @ transform @ to_pixels
    grid = affine_grid(theta[:, :2], list(x.shape), align_corners=False)
    padding = "reflection" if reflects else "zeros"
    expected = grid_sample(x, grid, padding_mode=padding, align_corners=False)
    result = augmentation._interpolate(x, transform, reflects)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def test_colors_in_closed_form():
    x, zero, one = images(1), torch.zeros(1), torch.ones(1)
    same = {"brightness": zero, "contrast": one, "inversion": zero, "hue": zero, "saturation": one}

    def change(**values):
        return augmentation._change_colors(x, **(same | values))

    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(change(), x)
    torch.testing.assert_close(change(brightness=zero + 0.3), x + 0.3)
    torch.testing.assert_close(change(contrast=zero + 0.5), x * 0.5)
    torch.testing.assert_close(change(inversion=one), x - 2 * gray)
    torch.testing.assert_close(change(saturation=zero), gray.expand(-1, 3, -1, -1))
    third = change(hue=zero + 2 * math.pi / 3)  # of a turn: red becomes green or blue
    torch.testing.assert_close(third, x.roll(1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(change(hue=zero + math.pi).mean(1, keepdim=True), gray)


def test_cutout_makes_a_quarter_of_the_image_gray():
    draws = augmentation._Draws(torch.tensor([[0.5, 0.5]]))
    cut = augmentation._cut_out(torch.ones(1, 3, 16, 16), draws)
    assert (cut[0, :, 4:12, 4:12] == 0).all()
    assert cut.sum() == 3 * (256 - 64)


@pytest.mark.parametrize("policy", POLICIES)
def test_images_from_0_to_1_change_like_those_from_minus_1_to_1(policy):
    changed = augment(images(), policy)
    unit = augment((images() + 1) / 2, policy, pixel_min=0.0)
    torch.testing.assert_close(unit, (changed + 1) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_penalty_through_the_augmentation_is_that_of_its_jacobian(policy):
    """For a linear D: |A^T w|^2 with the augmentation's matrix A, and its gradient 2 A A^T w."""
    x = images(1, height=8, width=8).requires_grad_()
    w = torch.randn(x.numel(), generator=torch.Generator().manual_seed(3)).requires_grad_()
    A = torch.autograd.functional.jacobian(lambda x: augment(x, policy).flatten(), x)
    A = A.reshape(x.numel(), x.numel())
    penalty = gradient_penalty(x, (augment(x, policy).flatten(1) @ w))
    torch.testing.assert_close(penalty, (A.T @ w).square().sum()[None])
    penalty.sum().backward()
    torch.testing.assert_close(w.grad, (2 * A @ (A.T @ w)).detach(), rtol=1e-4, atol=1e-4)


def test_both_objectives_show_D_changed_images_only():
    """Real and fake images have draws of their own; G's gradient passes through the changes."""
    shown = []

    class Recorder(torch.nn.Module):
        def forward(self, images):
            shown.append(images.detach())
            return images.square().flatten(1).mean(1)

    D, real, fake = Recorder(), images(2), images(4)[2:]
    policy = AugmentConfig(policy="ada", target=0.6)
    augmentation = Augmentation(policy, -1.0)
    draws = torch.rand(2, 2 * DRAWS, generator=torch.Generator().manual_seed(0))
    p = torch.tensor(0.9)
    changed = [
        augmentation(real, draws[:, :DRAWS], p),
        augmentation(fake, draws[:, DRAWS:], p),
    ]
    loss = LossConfig("relativistic", r1_gamma=1.0)
    _, stats = DiscriminatorObjective(D, loss, augmentation)(real, fake, draws=draws, p=p)
    assert torch.equal(shown[0], changed[0])
    assert torch.equal(shown[1], changed[1])
    assert stats["discriminator/overfitting"].tolist() == [1, 1]
    shown.clear()
    z = fake.clone().requires_grad_()
    objective = GeneratorObjective(torch.nn.Identity(), D, loss, augmentation)
    total, _ = objective(z, real, draws=draws, p=p)
    total.backward()
    assert torch.equal(shown[0], changed[1])
    assert torch.equal(shown[1], changed[0])
    assert z.grad.abs().sum() > 0
