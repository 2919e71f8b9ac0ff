"""The two updates: what each changes and what it must not change."""

import copy

import pytest
import torch
from torch import nn

from ganray.config.schema import AugmentConfig, LossConfig
from ganray.gan.augmentation import DRAWS, Augmentation
from ganray.gan.losses import LOSSES, Loss
from ganray.gan.step import (
    DiscriminatorObjective,
    GeneratorObjective,
    discriminator_step,
    generator_step,
)


def tiny_pair():
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    return G, D


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def is_unchanged(before, network):
    return all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_the_discriminator_step_changes_D_only(name):
    G, D = tiny_pair()
    loss = LossConfig(name=name, r1_gamma=1.0, r2_gamma=1.0)
    before = weights(G), weights(D)
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    real, z = torch.rand(4, 3, 2, 2), torch.randn(4, 2)
    stats = discriminator_step(DiscriminatorObjective(D, loss), G, optimizer, real, z)
    assert is_unchanged(before[0], G)
    assert not is_unchanged(before[1], D)
    assert all(p.grad is None for p in G.parameters())
    names = ["loss/D", "loss/r1", "loss/r2"]
    names += [f"discriminator/{name}" for name in ("real_prob", "fake_prob", "saturation")]
    assert {name: value.shape for name, value in stats.items()} == dict.fromkeys(names, (4,))


@pytest.mark.parametrize("name", LOSSES)
def test_the_generator_step_changes_G_only_and_leaves_D_trainable(name):
    G, D = tiny_pair()
    before = weights(G), weights(D)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    objective = GeneratorObjective(G, D, LossConfig(name=name))
    real, z = torch.rand(4, 3, 2, 2, requires_grad=True), torch.randn(4, 2)  # as after R1
    stats = generator_step(objective, D, optimizer, real, z)
    assert not is_unchanged(before[0], G)
    assert is_unchanged(before[1], D)
    assert all(p.grad is None for p in D.parameters())
    assert real.grad is None
    assert all(p.requires_grad for p in D.parameters())
    assert set(stats) == {"loss/G"}


def test_one_discriminator_step_in_closed_form():
    """D(x) = w x with w = 0: the bce gradient is (fake - real) / 4."""
    G = nn.Identity()
    D = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    nn.init.zeros_(D[0].weight)
    optimizer = torch.optim.SGD(D.parameters(), 1.0)
    objective = DiscriminatorObjective(D, LossConfig())
    discriminator_step(objective, G, optimizer, torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(D[0].weight.detach(), torch.tensor([[(3.0 - 1.0) / 4]]))


def test_D_gets_the_labels_with_real_and_with_fake_images():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.labels = nn.Parameter(torch.ones(())), []

        def forward(self, images, labels):
            self.labels.append(labels)
            return self.weight * images.flatten(1).sum(1)

    D, G, loss = Recorder(), nn.Linear(2, 3), LossConfig(name="relativistic")
    real, z, labels = torch.rand(4, 3), torch.randn(4, 2), [torch.eye(4)]
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    discriminator_step(DiscriminatorObjective(D, loss), G, optimizer, real, z, labels)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    generator_step(GeneratorObjective(G, D, loss), D, optimizer, real, z, labels)
    assert len(D.labels) == 4
    assert all(torch.equal(recorded, labels[0]) for recorded in D.labels)


def test_G_gets_the_real_logits_for_a_paired_loss(monkeypatch):
    loss = Loss(D=lambda real, fake: real, G=lambda real, fake: real, ideal=None, paired=True)
    monkeypatch.setitem(LOSSES, "bce", loss)
    D, real = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), torch.randn(4, 3)
    objective = GeneratorObjective(nn.Linear(2, 3), D, LossConfig(name="bce"))
    _, stats = objective(torch.randn(4, 2), real)
    torch.testing.assert_close(stats["loss/G"], D(real).detach())


def test_saturation_is_the_share_of_confidently_correct_images():
    """Logits of 5 and -5 exceed 99 % confidence; 4.5 (0.989) does not."""
    D = nn.Sequential(nn.Flatten(0))
    objective = DiscriminatorObjective(D, LossConfig())
    _, stats = objective(torch.tensor([[5.0], [4.5], [-9]]), torch.tensor([[-5.0], [5], [-9]]))
    assert stats["discriminator/saturation"].tolist() == [1, 0, 0.5]


def test_wgan_gp_adds_10_times_the_penalty_at_mixed_images():
    """D(x) = x^2 / 2 has the gradient x, which is 2 at a quarter of the way from 0 to 8."""

    class Square(nn.Module):
        def forward(self, x):
            return x.flatten() ** 2 / 2

    objective = DiscriminatorObjective(Square(), LossConfig(name="wgan", gp_weight=10))
    real, fake, alpha = torch.tensor([[8.0]]), torch.tensor([[0.0]]), torch.tensor([0.25])
    loss, stats = objective(real, fake, alpha=alpha)
    assert stats["loss/gp"].tolist() == [(2 - 1) ** 2]
    assert loss.item() == (0 - 32) + 10 * 1


def test_lazy_penalties_are_multiplied_at_every_kth_step_and_left_out_at_others():
    """D(x) = x has the squared gradient 1."""
    loss = LossConfig(name="wgan", r1_gamma=0.5, r2_gamma=0.25, penalty_every=4)
    objective = DiscriminatorObjective(nn.Flatten(0), loss)
    totals, names = [], []
    for step in range(5):
        real, fake = torch.tensor([[3.0]]), torch.tensor([[1.0]])
        total, stats = objective(real, fake, penalty_scale=loss.penalty_scale(step))
        totals.append(total.item())
        names.append({"loss/r1", "loss/r2"} & set(stats))
        assert real.requires_grad == (step in (0, 4))  # no second derivative is prepared
    assert totals == [-2 + 4 * (0.25 + 0.125), -2, -2, -2, -2 + 4 * (0.25 + 0.125)]
    assert names == [{"loss/r1", "loss/r2"}, set(), set(), set(), {"loss/r1", "loss/r2"}]


def test_weighted_gradients_of_unequal_slices_average_to_that_of_the_batch():
    """DDP averages over two ranks, here with 1 and 3 of 4 images."""
    real, z = torch.rand(4, 3, 2, 2), torch.randn(4, 2)

    def gradient(rows, weight):
        G, D = tiny_pair()
        optimizer = torch.optim.SGD(D.parameters(), 0.0)
        objective = DiscriminatorObjective(D, LossConfig(r1_gamma=1.0))
        discriminator_step(objective, G, optimizer, real[rows].clone(), z[rows], weight=weight)
        return D[1].weight.grad

    one, three = gradient(slice(0, 1), 1 * 2 / 4), gradient(slice(1, 4), 3 * 2 / 4)
    torch.testing.assert_close((one + three) / 2, gradient(slice(0, 4), 1.0))


@pytest.mark.parametrize("name", ["bce", "relativistic"])
def test_gradients_of_parts_of_a_batch_add_up_to_that_of_the_batch(name):
    """10 images in parts of 4, 4 and 2, with labels, WGAN-GP and augmentation of their own."""
    loss = LossConfig(name=name, r1_gamma=1.0, r2_gamma=1.0, gp_weight=1.0)
    real, z, alpha = torch.rand(10, 3, 8, 8), torch.randn(10, 2), torch.rand(10)
    augmentation = Augmentation(AugmentConfig("ada"), -1.0)
    draws, p = torch.rand(10, 2 * DRAWS), torch.tensor(0.5)
    results = []
    for microbatch in (None, 4):
        torch.manual_seed(0)
        G = nn.Sequential(nn.Linear(2, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
        D = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))
        D(real)
        D = nn.Sequential(D, nn.Flatten(0))
        options = {"draws": draws, "p": p, "microbatch": microbatch}
        D_stats = discriminator_step(
            DiscriminatorObjective(D, loss, augmentation),
            G,
            torch.optim.SGD(D.parameters(), 0.1),
            real,
            z,
            alpha=alpha,
            **options,
        )
        G_objective = GeneratorObjective(G, D, loss, augmentation)
        G_optimizer = torch.optim.SGD(G.parameters(), 0.1)
        G_stats = generator_step(G_objective, D, G_optimizer, real, z, **options)
        results.append((D_stats | G_stats, weights(D) + weights(G)))
    (whole, whole_weights), (parts, part_weights) = results
    assert whole.keys() == parts.keys()
    for statistic, value in whole.items():
        torch.testing.assert_close(parts[statistic], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(whole_weights, part_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bf16_applies_to_the_networks_and_not_to_the_loss():
    G, D = tiny_pair()
    dtypes = []
    D[1].register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    stats = discriminator_step(
        DiscriminatorObjective(D, LossConfig()),
        G,
        optimizer,
        torch.rand(4, 3, 2, 2),
        torch.randn(4, 2),
        autocast=torch.autocast("cpu", torch.bfloat16),
    )
    assert set(dtypes) == {torch.bfloat16}
    assert stats["loss/D"].dtype == torch.float32


def test_G_ema_has_the_stated_half_life():
    from ganray.gan import ema

    G = nn.Linear(1, 1, bias=False)
    G_ema = copy.deepcopy(G)
    nn.init.ones_(G.weight)
    nn.init.zeros_(G_ema.weight)
    averaged, latest = ([p.detach() for p in net.parameters()] for net in (G_ema, G))
    for _ in range(5):
        ema.update(averaged, latest, batch_size=20, half_life=100, images_seen=10**6)
    torch.testing.assert_close(G_ema.weight.detach(), torch.tensor([[0.5]]))
    ema.update(averaged, latest, batch_size=20, half_life=0, images_seen=10**6)
    torch.testing.assert_close(G_ema.weight.detach(), torch.tensor([[1.0]]))
