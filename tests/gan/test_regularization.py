"""What is done to D against collapse: each against a closed form, or a concatenation by hand."""

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


def test_a_packed_D_sees_what_a_concatenation_by_hand_shows():
    x = torch.arange(6.0).reshape(6, 1, 1, 1)
    noting = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False), nn.Flatten(0))
    nn.init.constant_(noting[1].weight, 1.0)
    assert PackedDiscriminator(noting, 3)(x).tolist() == [0 + 1 + 2, 3 + 4 + 5]
    G, D = build(pack=2)
    four = images(4)
    by_hand = torch.stack([torch.cat([four[0], four[1]]), torch.cat([four[2], four[3]])])
    assert torch.equal(D(four), D.D(by_hand))
    assert G(torch.randn(2, 4)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_all_that_is_done_to_D_goes_together(kind):
    _, D = build(kind=kind, pack=2, minibatch_stddev=3, spectral_norm=True)
    assert D(images(12)).shape == (6,)


def test_the_spread_of_a_group_is_one_more_feature():
    told = MinibatchStddev(2)(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 2.0], [2.0, 2.0]]))
    expected = [(1 + 0) / 2] * 2 + [0] * 2  # two features: one a unit to both sides, one equal
    torch.testing.assert_close(told[:, 2], torch.tensor(expected), atol=2e-4, rtol=0)
    maps = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 5, 2, 3)
    told = MinibatchStddev(4)(maps)
    assert told.shape == (4, 6, 2, 3)
    assert torch.equal(told[:, :5], maps)
    torch.testing.assert_close(told[:, 5], torch.full((4, 2, 3), 1.25**0.5))  # 0 1 2 3


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_D_starts_as_the_one_that_is_not_told_the_spread_and_can_learn_from_it(kind):
    (_, D), (_, plain) = build(kind=kind, minibatch_stddev=4), build(kind=kind)
    equal = images(1).expand(4, -1, -1, -1).clone().requires_grad_()
    torch.testing.assert_close(D(equal), plain(equal))
    D(torch.cat([equal, images(4)])).sum().backward()
    gradient = [m for m in D.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1].weight.grad
    assert gradient[:, -1].abs().min() > 0
    assert equal.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_the_spectral_norm_of_every_layer_of_D_comes_to_1(kind):
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


def game(theta, w, **loss):
    """G(z) = z + theta and D(x) = w x, on single numbers."""
    G, D = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    nn.init.ones_(G.weight)
    nn.init.constant_(G.bias, theta)
    nn.init.constant_(D[0].weight, w)
    G.weight.requires_grad_(False)
    return G, D, GeneratorObjective(G, D, LossConfig(**loss))


def turn(G, D, objective):
    real, z = torch.tensor([[3.0], [5.0]]), torch.tensor([[-1.0], [2.0]])
    optimizer = torch.optim.SGD(G.parameters(), 0.0)
    generator_step(objective, D, optimizer, real, z)
    return G.bias.grad.item()


def test_one_step_ahead_of_a_linear_game_by_hand():
    """WGAN: D's loss is w (mean fake - mean real), so w' = w + lr (4 - theta - 0.5).

    G's is -w' (theta + 0.5): its slope is -w' where D stands still, and + lr (theta + 0.5) for
    what its own move does to D.
    """
    theta, w, lr = 0.25, 2.0, 0.1
    ahead = w + lr * (4 - theta - 0.5)
    G, D, objective = game(theta, w, name="wgan", unroll=1, unroll_lr=lr)
    assert turn(G, D, objective) == pytest.approx(-ahead + lr * (theta + 0.5))
    assert D[0].weight.item() == w
    assert D[0].weight.grad is None


@pytest.mark.parametrize("name", ["bce", "relativistic"])
def test_steps_ahead_are_gradient_steps_written_out(name):
    theta, w, lr, steps = torch.tensor(0.25, requires_grad=True), torch.tensor(0.3), 0.5, 3
    real, z = torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 2.0])
    loss, w = LOSSES[name], w.requires_grad_()
    moved = w
    for _ in range(steps):
        D_loss = loss.D(moved * real, moved * (z + theta)).mean()
        moved = moved - lr * torch.autograd.grad(D_loss, moved, create_graph=True)[0]
    expected = torch.autograd.grad(loss.G(moved * real, moved * (z + theta)).mean(), theta)[0]
    settings = {"name": name, "unroll": steps, "unroll_lr": lr}
    assert turn(*game(0.25, 0.3, **settings)) == pytest.approx(expected.item(), rel=1e-5)


def test_no_step_ahead_is_D_itself_bit_for_bit():
    _, D = build(spectral_norm=True)
    D.eval()
    judge = unrolled_discriminator(D, 0, 0.1, lambda _: torch.zeros(()))
    assert torch.equal(judge(images(3)), D(images(3)))


def test_G_looks_ahead_through_all_that_is_done_to_D():
    G, D = build(pack=2, minibatch_stddev=2, spectral_norm=True)
    before = [p.detach().clone() for p in D.parameters()]
    objective = GeneratorObjective(G, D, LossConfig(name="relativistic", unroll=2))
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    stats = generator_step(objective, D, optimizer, images(4), torch.randn(4, 4), autocast=bf16)
    assert stats["G/loss"].shape == (2,)
    assert all(p.grad.isfinite().all() for p in G.parameters())
    assert all(map(torch.equal, before, D.parameters()))
    assert all(p.grad is None and p.requires_grad for p in D.parameters())
