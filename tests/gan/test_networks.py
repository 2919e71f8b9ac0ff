"""Shapes, published sizes, and the independence of images that DDP and R1 rely on."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ganray.config import presets
from ganray.config.schema import LatentConfig, NetworkConfig
from ganray.gan import networks


def num_parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_the_celeba_mlp_has_the_sizes_of_the_source_text():
    """D 116412-100-1 and G 100-300-116412, each with one LayerNorm."""
    config = presets.mlp()
    G, D = networks.build(config.network, config.latent, (218, 178, 3))
    pixels = 218 * 178 * 3
    assert pixels == 116_412
    assert num_parameters(D) == (pixels * 100 + 100) + 2 * 100 + (100 + 1)
    assert num_parameters(G) == (100 * 300 + 300) + 2 * 300 + (300 * pixels + pixels)
    images = G(torch.randn(2, 100))
    assert images.shape == (2, 3, 218, 178)
    assert images.min() >= 0
    assert images.max() <= 1
    assert D(images).shape == (2,)


def test_the_first_mnist_pair_has_the_sizes_of_the_source_text():
    """D 784-200-1 and G 1-200-784 with sigmoids, no normalization and torch's initialization."""
    config = presets.first()
    G, D = networks.build(config.network, config.latent, (28, 28, 1))
    assert num_parameters(D) == (784 * 200 + 200) + (200 + 1)
    assert num_parameters(G) == (1 * 200 + 200) + (200 * 784 + 784)
    assert [type(m).__name__ for m in G] == ["Linear", "Sigmoid", "Linear", "Sigmoid", "Unflatten"]
    assert [type(m).__name__ for m in D] == ["Flatten", "Linear", "Sigmoid", "Linear", "Flatten"]


def test_the_refined_preset_adds_layer_norm_and_leaky_relu():
    config = presets.refined()
    G, D = networks.build(config.network, config.latent, (28, 28, 1))
    for network in (G, D):
        (leaky,) = (m for m in network if isinstance(m, torch.nn.LeakyReLU))
        (norm,) = (m for m in network if isinstance(m, torch.nn.LayerNorm))
        assert leaky.negative_slope == 0.02
        assert norm.normalized_shape == (200,)


@pytest.mark.parametrize("kind", ["mlp", "dcgan", "metz", "resnet"])
def test_a_conditional_pair_depends_on_the_label(kind):
    torch.manual_seed(0)
    network = NetworkConfig(kind=kind, width_G=8, width_D=8, conditional=True)
    G, D = networks.build(network, LatentConfig(size=10), (16, 16, 1), classes=4)
    two, three = (networks.one_hot_labels(torch.tensor([k, k]), 4) for k in (2, 3))
    assert two.tolist() == [[0, 0, 1, 0]] * 2
    z = torch.randn(2, 10)
    images = G(torch.cat([z, two], 1))
    assert images.shape == (2, 1, 16, 16)
    assert not torch.equal(images, G(torch.cat([z, three], 1)))
    assert D(images, two).shape == (2,)
    assert not torch.equal(D(images, two), D(images, three))


def test_the_conditional_discriminator_has_the_794_inputs_of_the_source_text():
    config = presets.conditional()
    G, D = networks.build(config.network, config.latent, (28, 28, 1), classes=10)
    assert D.D[1].in_features == 794
    assert G[0].in_features == 110


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_dcgan_shapes(size):
    network = NetworkConfig(width_G=8, width_D=8)
    G, D = networks.build(network, LatentConfig(size=10), (size, size, 3))
    images = G(torch.randn(2, 10))
    assert images.shape == (2, 3, size, size)
    assert D(images).shape == (2,)


@pytest.mark.parametrize("kind", ["dcgan", "metz"])
@pytest.mark.parametrize("size", [17, 20, 28, 45])
def test_sides_that_are_not_powers_of_two(kind, size):
    network = NetworkConfig(kind=kind, width_G=8, width_D=8)
    G, D = networks.build(network, LatentConfig(size=10), (size, size, 3))
    images = G(torch.randn(2, 10))
    assert images.shape == (2, 3, size, size)
    assert D(images).shape == (2,)


def test_halved_sides_are_rounded_up():
    assert networks.halvings(28) == [28, 14, 7, 4]
    assert networks.halvings(64) == [64, 32, 16, 8, 4]
    assert networks.halvings(45) == [45, 23, 12, 6, 3]
    assert networks.halvings(64, 3) == [64, 32, 16, 8]


def test_all_kernels_are_4x4_for_sides_that_are_powers_of_two():
    G, D = networks.build(NetworkConfig(width_G=8, width_D=8), LatentConfig(size=10), (32, 32, 3))
    weights = [[tuple(p.shape) for p in net.parameters() if p.ndim == 4] for net in (G, D)]
    widths = [10, 32, 16, 8, 3]  # from latent to pixels
    assert weights[0] == [(*pair, 4, 4) for pair in pairwise(widths)]
    widths = [3, 8, 16, 32, 1]
    assert weights[1] == [(out, into, 4, 4) for into, out in pairwise(widths)]
    assert list(D.state_dict())[:4] == ["0.weight", "0.bias", "2.weight", "3.weight"]


def test_metz_networks_have_the_published_sizes():
    """PacGAN, table 3: D of 1/4 size has 585 parameters, including three norms."""
    config = presets.stacked_t3_quarter()
    G, D = networks.build(config.network, config.latent, (28, 28, 3))
    a, b, c = 2, 4, 8
    weights = 9 * (3 * a + a * b + b * c) + (a + b + c) + 2 * (a + b + c) + (c * 4 * 4 + 1)
    assert num_parameters(D) == weights == 585
    widths = [64, 32, 16, 8, 3]
    weights = sum(9 * i * o + o for i, o in pairwise(widths)) + 2 * (64 + 32 + 16 + 8)
    assert num_parameters(G) == (256 * 1024 + 1024) + weights == 287_875
    config = presets.stacked_t3_half()
    _, D = networks.build(config.network, config.latent, (28, 28, 3))
    assert [m.out_channels for m in D if isinstance(m, torch.nn.Conv2d)] == [4, 8, 16]


def test_dcgan64_has_the_published_widths():
    """Radford et al. 2015, figure 1, with 512 channels as in their code instead of 1024."""
    config = presets.dcgan64()
    G, D = networks.build(config.network, config.latent, (64, 64, 3))
    convolutions = [m for m in G if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.in_channels for m in convolutions] == [100, 512, 256, 128, 64]
    convolutions = [m for m in D if isinstance(m, torch.nn.Conv2d)]
    assert [m.in_channels for m in convolutions] == [3, 64, 128, 256, 512]


SHAPES = {
    "cpu32": (32, 32, 3),
    "dcgan64": (64, 64, 3),
    "mlp": (218, 178, 3),
    "resnet": (32, 32, 3),
    "regularized": (32, 32, 3),
}
REGULARIZATION = {"pack": 2, "minibatch_stddev": 3, "spectral_norm": True}
CONFIGS = presets.CELEBA | presets.MNIST | presets.STACKED
SHAPES |= dict.fromkeys([*presets.STACKED, "regularized-metz"], (28, 28, 3))
SMALL_RESNET = NetworkConfig(kind="resnet", width_G=16, width_D=16, max_width=32)
CONFIGS["resnet"] = replace(presets.cpu32(), network=SMALL_RESNET)
for name, preset in (
    ("regularized", presets.cpu32()),
    ("regularized-metz", presets.stacked_t3_quarter()),
):
    CONFIGS[name] = replace(preset, network=replace(preset.network, **REGULARIZATION))


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_combine_images_within_a_group_only_and_have_no_other_buffers(name):
    config = CONFIGS[name]
    classes = 10 if config.network.conditional else 0
    shape = SHAPES.get(name, (28, 28, 1))
    G, D = networks.build(config.network, config.latent, shape, classes)
    # Checkpoints and DDP rely on it; filters of resampling are constants.
    assert G.state_dict().keys() == {name for name, _ in G.named_parameters()}
    buffers = {"_u", "_v"} if config.network.spectral_norm else set()
    buffers |= {"filter"} if config.network.kind == "resnet" else set()
    assert {name.split(".")[-1] for name, _ in D.named_buffers()} == buffers
    size = config.network.group_size()
    z = torch.randn(3 * size, config.latent.size + classes)
    labels = [networks.one_hot_labels(torch.arange(3 * size), classes)] if classes else []
    group, group_logits = (slice(size // n, 2 * size // n) for n in (1, config.network.pack))
    D.eval()  # in training mode spectral norm updates its buffers
    with torch.no_grad():
        images, logits = G(z), D(G(z), *labels)
        torch.testing.assert_close(G(z[group]), images[group])
        alone = D(images[group], *(label[group] for label in labels))
        torch.testing.assert_close(alone, logits[group_logits], rtol=1e-4, atol=1e-5)
