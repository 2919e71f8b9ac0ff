"""Regularization of D against closed forms and manual concatenation."""

import pytest
import torch
from torch import nn

from ganray.config.schema import LatentConfig, LossConfig, NetworkConfig
from ganray.gan import networks
from ganray.gan.losses import LOSSES
from ganray.gan.regularization import MinibatchStddev, PackedDiscriminator, unrolled_discriminator
from ganray.gan.step import GeneratorObjective, generator_step

SHAPE = (16, 16, 3)
LATENT = LatentConfig(size=4)


def build(**network):
    torch.manual_seed(0)
    sizes = {"width_G": 8, "width_D": 8}
    return networks.build(NetworkConfig(**(sizes | network)), LATENT, SHAPE)


def images(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_packed_D_equals_manual_concatenation():
    x = torch.arange(6.0).reshape(6, 1, 1, 1)
    total = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False), nn.Flatten(0))
    nn.init.constant_(total[1].weight, 1.0)
    assert PackedDiscriminator(total, 3)(x).tolist() == [0 + 1 + 2, 3 + 4 + 5]
    G, D = build(pack=2)
    four = images(4)
    concatenated = torch.stack([torch.cat([four[0], four[1]]), torch.cat([four[2], four[3]])])
    assert torch.equal(D(four), D.D(concatenated))
    assert G(torch.randn(2, 4)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_all_regularizers_can_be_combined(kind):
    _, D = build(kind=kind, pack=2, minibatch_stddev=3, spectral_norm=True)
    assert D(images(12)).shape == (6,)


def test_the_stddev_of_a_group_is_appended_as_a_feature():
    output = MinibatchStddev(2)(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 2.0], [2.0, 2.0]]))
    expected = [(1 + 0) / 2] * 2 + [0] * 2  # features with stddev 1 and 0
    torch.testing.assert_close(output[:, 2], torch.tensor(expected), atol=2e-4, rtol=0)
    maps = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 5, 2, 3)
    output = MinibatchStddev(4)(maps)
    assert output.shape == (4, 6, 2, 3)
    assert torch.equal(output[:, :5], maps)
    torch.testing.assert_close(output[:, 5], torch.full((4, 2, 3), 1.25**0.5))  # 0 1 2 3


@pytest.mark.parametrize("kind", ["mlp", "dcgan", "resnet"])
def test_minibatch_stddev_is_initially_unused_and_has_a_gradient(kind):
    (_, D), (_, plain) = build(kind=kind, minibatch_stddev=4), build(kind=kind)
    equal = images(1).expand(4, -1, -1, -1).clone().requires_grad_()
    torch.testing.assert_close(D(equal), plain(equal))
    D(torch.cat([equal, images(4)])).sum().backward()
    gradient = [m for m in D.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1].weight.grad
    assert gradient[:, -1].abs().min() > 0
    assert equal.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_the_spectral_norm_of_every_layer_of_D_is_1(kind):
    G, D = build(kind=kind, spectral_norm=True)
    for _ in range(100):
        D(images(1))
    layers = [m for m in D.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in layers]
    assert norms == pytest.approx([1.0] * len(layers), rel=1e-3)
    assert {name.split(".")[-1] for name, _ in D.named_buffers()} == {"_u", "_v"}
    assert not list(G.buffers())


def test_spectral_norm_is_not_computed_in_bf16():
    _, D = build(kind="mlp", spectral_norm=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert D(images(2)).dtype == torch.bfloat16
        for _ in range(100):
            D(images(1))
    (first, *_) = (m for m in D.modules() if isinstance(m, nn.Linear))
    assert torch.linalg.matrix_norm(first.weight, 2).item() == pytest.approx(1, abs=1e-5)


def linear_gan(theta, w, **loss):
    """Return G(z) = z + theta and D(x) = w x on scalars."""
    G, D = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    nn.init.ones_(G.weight)
    nn.init.constant_(G.bias, theta)
    nn.init.constant_(D[0].weight, w)
    G.weight.requires_grad_(False)
    return G, D, GeneratorObjective(G, D, LossConfig(**loss))


def gradient_of_theta(G, D, objective):
    real, z = torch.tensor([[3.0], [5.0]]), torch.tensor([[-1.0], [2.0]])
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    generator_step(objective, D, optimizer, real, z)
    return G.bias.grad.item()


def test_one_unrolled_step_of_a_linear_wgan_in_closed_form():
    """D's loss is w (mean fake - mean real), so w' = w + lr (4 - theta - 0.5).

    G's loss is -w' (theta + 0.5). Its gradient is -w' for a constant w', plus lr (theta + 0.5)
    because w' depends on theta.
    """
    theta, w, lr = 0.25, 2.0, 0.1
    unrolled = w + lr * (4 - theta - 0.5)
    G, D, objective = linear_gan(theta, w, name="wgan", unroll=1, unroll_lr=lr)
    assert gradient_of_theta(G, D, objective) == pytest.approx(-unrolled + lr * (theta + 0.5))
    assert D[0].weight.item() == w
    assert D[0].weight.grad is None


@pytest.mark.parametrize("name", ["bce", "relativistic"])
def test_unrolled_steps_are_explicit_gradient_steps(name):
    theta, w, lr, steps = torch.tensor(0.25, requires_grad=True), torch.tensor(0.3), 0.5, 3
    real, z = torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 2.0])
    loss, w = LOSSES[name], w.requires_grad_()
    unrolled = w
    for _ in range(steps):
        D_loss = loss.D(unrolled * real, unrolled * (z + theta)).mean()
        unrolled = unrolled - lr * torch.autograd.grad(D_loss, unrolled, create_graph=True)[0]
    expected = torch.autograd.grad(loss.G(unrolled * real, unrolled * (z + theta)).mean(), theta)[0]
    settings = {"name": name, "unroll": steps, "unroll_lr": lr}
    assert gradient_of_theta(*linear_gan(0.25, 0.3, **settings)) == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_zero_unrolled_steps_leave_D_bitwise_equal():
    _, D = build(spectral_norm=True)
    D.eval()
    unrolled = unrolled_discriminator(D, 0, 0.1, lambda _: torch.zeros(()))
    assert torch.equal(unrolled(images(3)), D(images(3)))


def test_unrolling_works_with_all_regularizers_and_leaves_D_unchanged():
    G, D = build(pack=2, minibatch_stddev=2, spectral_norm=True)
    before = [p.detach().clone() for p in D.parameters()]
    objective = GeneratorObjective(G, D, LossConfig(name="relativistic", unroll=2))
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    stats = generator_step(objective, D, optimizer, images(4), torch.randn(4, 4), autocast=bf16)
    assert stats["loss/G"].shape == (2,)
    assert all(p.grad.isfinite().all() for p in G.parameters())
    assert all(map(torch.equal, before, D.parameters()))
    assert all(p.grad is None and p.requires_grad for p in D.parameters())
