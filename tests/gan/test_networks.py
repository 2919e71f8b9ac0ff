"""Shapes, the source text's sizes, and the independence that DDP and R1 rest on."""

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


@pytest.mark.parametrize("preset", [presets.cpu32, presets.dcgan64, presets.mlp])
def test_no_net_mixes_the_images_of_a_batch_or_keeps_buffers(preset):
    config = preset()
    size = config.data.size
    shape = (size, size, 3) if size else (218, 178, 3)
    G, D = networks.build(config.network, config.latent, shape)
    assert not list(G.buffers())
    assert not list(D.buffers())
    z = torch.randn(3, config.latent.size)
    with torch.no_grad():
        images = G(z)
        torch.testing.assert_close(G(z[1:2]), images[1:2])
        torch.testing.assert_close(D(images[1:2]), D(images)[1:2], rtol=1e-4, atol=1e-5)
