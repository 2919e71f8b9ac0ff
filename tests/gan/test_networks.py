"""Shapes, the source text's sizes, and the independence that DDP and R1 rest on."""

from dataclasses import replace

import pytest
import torch

from ganray import presets
from ganray.config import LatentConfig, NetworkConfig
from ganray.gan import networks


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_source_texts_celeba_mlp():
    """D 116412-100-1 and G 100-300-116412, each with one LayerNorm."""
    config = presets.mlp()
    G, D = networks.build(config.network, config.latent, (218, 178, 3))
    pixels = 218 * 178 * 3
    assert pixels == 116_412
    assert count(D) == (pixels * 100 + 100) + 2 * 100 + (100 + 1)
    assert count(G) == (100 * 300 + 300) + 2 * 300 + (300 * pixels + pixels)
    images = G(torch.randn(2, 100))
    assert images.shape == (2, 3, 218, 178)
    assert images.min() >= 0
    assert images.max() <= 1
    assert D(images).shape == (2,)


def test_the_source_texts_first_mnist_pair():
    """D 784-200-1 and G 1-200-784: sigmoids, nothing normalised, torch's own first weights."""
    config = presets.first()
    G, D = networks.build(config.network, config.latent, (28, 28, 1))
    assert count(D) == (784 * 200 + 200) + (200 + 1)
    assert count(G) == (1 * 200 + 200) + (200 * 784 + 784)
    assert [type(m).__name__ for m in G] == ["Linear", "Sigmoid", "Linear", "Sigmoid", "Unflatten"]
    assert [type(m).__name__ for m in D] == ["Flatten", "Linear", "Sigmoid", "Linear", "Flatten"]


def test_refined_adds_what_the_source_text_adds():
    config = presets.refined()
    G, D = networks.build(config.network, config.latent, (28, 28, 1))
    for network in (G, D):
        (leaky,) = (m for m in network if isinstance(m, torch.nn.LeakyReLU))
        (norm,) = (m for m in network if isinstance(m, torch.nn.LayerNorm))
        assert leaky.negative_slope == 0.02
        assert norm.normalized_shape == (200,)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_a_conditional_pair_listens_to_the_label(kind):
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


def test_the_source_texts_conditional_discriminator_has_794_inputs():
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


def test_dcgan64_has_the_published_widths():
    """Radford et al. 2015, figure 1: 1024 was 512 in the code everybody uses; 100 -> 512 -> 64."""
    config = presets.dcgan64()
    G, D = networks.build(config.network, config.latent, (64, 64, 3))
    convolutions = [m for m in G if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.in_channels for m in convolutions] == [100, 512, 256, 128, 64]
    convolutions = [m for m in D if isinstance(m, torch.nn.Conv2d)]
    assert [m.in_channels for m in convolutions] == [3, 64, 128, 256, 512]


SHAPES = {"cpu32": (32, 32, 3), "dcgan64": (64, 64, 3), "mlp": (218, 178, 3), "cured": (32, 32, 3)}
CURES = {"pack": 2, "minibatch_stddev": 3, "spectral_norm": True}
CONFIGS = presets.CELEBA | presets.MNIST
CONFIGS["cured"] = replace(presets.cpu32(), network=replace(presets.cpu32().network, **CURES))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_net_mixes_images_but_those_that_D_looks_at_together_or_keeps_other_buffers(name):
    config = CONFIGS[name]
    classes = 10 if config.network.conditional else 0
    shape = SHAPES.get(name, (28, 28, 1))
    G, D = networks.build(config.network, config.latent, shape, classes)
    assert not list(G.buffers())
    followed = {"_u", "_v"} if config.network.spectral_norm else set()
    assert {name.split(".")[-1] for name, _ in D.named_buffers()} == followed
    size = config.network.together()
    z = torch.randn(3 * size, config.latent.size + classes)
    labels = [networks.one_hot_labels(torch.arange(3 * size), classes)] if classes else []
    mine, judged = slice(size, 2 * size), slice(*(k * size // config.network.pack for k in (1, 2)))
    D.eval()  # in training mode each look moves the buffers
    with torch.no_grad():
        images, logits = G(z), D(G(z), *labels)
        torch.testing.assert_close(G(z[mine]), images[mine])
        alone = D(images[mine], *(label[mine] for label in labels))
        torch.testing.assert_close(alone, logits[judged], rtol=1e-4, atol=1e-5)
