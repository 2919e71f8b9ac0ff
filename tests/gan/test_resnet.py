"""R3GAN's residual networks: published sizes, closed forms of their parts, precision by stage."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from ganray.config.schema import Config, DataConfig, LatentConfig, NetworkConfig
from ganray.errors import UserError
from ganray.gan import networks
from ganray.gan.losses import gradient_penalty
from ganray.gan.resnet import Downsample, ResidualBlock, Upsample, stage_widths

SMALL = NetworkConfig(kind="resnet", width_G=16, width_D=16, max_width=32, group_width=8)


def build(network=SMALL, side=32, classes=0, size=64):
    torch.manual_seed(0)
    return networks.build(network, LatentConfig(size=size), (side, side, 3), classes)


def millions(network):
    return round(sum(p.numel() for p in network.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("side", "width", "G_millions", "D_millions"),
    [(32, 768, 20.73, 20.68), (64, 384, 22.43, 22.38), (256, 96, 23.06, 23.01)],
)
def test_published_sizes(side, width, G_millions, D_millions):
    """Huang et al. 2024: the 32-pixel net of CIFAR-10 and stacked MNIST, FFHQ-64, FFHQ-256."""
    network = replace(SMALL, width_G=width, width_D=width, max_width=768, blocks=2, group_width=16)
    with torch.device("meta"):
        G, D = build(network, side)
    assert (millions(G), millions(D)) == (G_millions, D_millions)


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
def test_shapes(side):
    G, D = build(side=side)
    images = G(torch.randn(2, 64))
    assert images.shape == (2, 3, side, side)
    assert D(images).shape == (2,)


@pytest.mark.parametrize("side", [8, 48, 512])
def test_other_sides_are_refused_on_the_driver(side):
    with pytest.raises(UserError, match=f"data.size to be 16, 32, 64, 128 or 256, not {side}"):
        Config(network=SMALL, data=DataConfig(size=side))


def test_widths_of_the_presets_of_huang_et_al():
    assert stage_widths(384, 768, 64) == [768, 768, 768, 768, 384]
    assert stage_widths(96, 768, 256) == [768, 768, 768, 768, 384, 192, 96]
    assert stage_widths(64, 512, 64) == [512, 512, 256, 128, 64]


def test_widths_that_groups_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"network.width_G=20 must be divisible by 8"):
        replace(SMALL, width_G=20, group_width=16)
    with pytest.raises(UserError, match=r"network.spectral_norm=true and network.kind=resnet"):
        replace(SMALL, spectral_norm=True)


def test_a_block_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    block, features = ResidualBlock(16, 8, gain=1.0), torch.randn(2, 16, 4, 4)
    assert torch.equal(block(features), features)
    block(features).square().sum().backward()
    assert block.residual[4].weight.grad.abs().min() > 0
    assert block.residual[2].groups == 4


def test_initial_weights_have_the_gain_of_fixup():
    """Four stages of two blocks: sqrt(2 / 1.04) * 8^(-1/4) / sqrt(fan-in), and zeros at the end."""
    network = replace(SMALL, width_G=256, max_width=256, blocks=2, group_width=16)
    G, _ = build(network)
    blocks = [m for m in G.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 8
    gain = (2 / 1.04) ** 0.5 * 8**-0.25
    for block in blocks:
        assert block.residual[0].weight.std().item() == pytest.approx(gain / 16, rel=0.02)
        assert block.residual[2].weight.std().item() == pytest.approx(gain / 12, rel=0.02)
        assert block.residual[4].weight.abs().max() == 0


def test_the_only_biases_are_those_before_activations():
    for network in build():
        biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
        expected = {
            f"{name}.residual.{layer}.bias"
            for name, module in network.named_modules()
            if isinstance(module, ResidualBlock)
            for layer in (0, 2)
        }
        assert biases == expected


def test_resampling_filters_in_closed_form():
    """[1, 3, 3, 1] / 8: a ramp keeps its slope, a constant its value; borders see zeros."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(Downsample()(ramp)[0, 0, 1, 1:3], torch.tensor([2.5, 4.5]))
    middle = Upsample()(ramp)[0, 0, 4, 2:6]
    torch.testing.assert_close(middle, torch.tensor([0.75, 1.25, 1.75, 2.25]))
    one = torch.zeros(1, 2, 4, 4)
    one[0, 1, 1, 1] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    expected = torch.zeros(8, 8)
    expected[1:5, 1:5] = torch.outer(taps, taps)
    assert torch.equal(Upsample()(one)[0], torch.stack([torch.zeros(8, 8), expected]))
    corner = Downsample()(torch.ones(1, 1, 4, 4))[0, 0, 0, 0]
    torch.testing.assert_close(corner, torch.tensor(49 / 64))


def test_the_logit_of_a_conditional_D_is_a_projection_on_the_label():
    _, D = build(classes=3)
    images, labels = torch.randn(2, 3, 32, 32), torch.eye(3)[:2]
    features = D.head(conv2d(D.smallest(D.larger(images)), D.pool[:, None], groups=32).flatten(1))
    expected = (features * D.embedding.weight.T[:2]).sum(1)
    torch.testing.assert_close(D(images, labels), expected)


def test_bf16_leaves_out_the_smallest_stage():
    types = {}
    G, D = build()
    for network in (G, D):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def record(module, inputs, output, name=name):
                    types[name] = output.dtype

                module.register_forward_hook(record)
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.randn(2, 64) if network is G else torch.randn(2, 3, 32, 32))
        for name, dtype in types.items():
            assert dtype == (torch.bfloat16 if name.startswith("larger") else torch.float32), name
        types.clear()


def test_gradient_penalties_reach_all_weights_of_D():
    """Not its biases, whose second derivative with leaky ReLU is zero."""
    _, D = build()
    for weight in D.parameters():  # zeros would hide the other layers of their block
        nn.init.normal_(weight, std=0.1)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    gradient_penalty(images, D(images)).sum().backward()
    without = {name for name, p in D.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in D.named_parameters() if name.endswith("bias")}
