"""Latents: repeatable, unrelated between steps and streams, distributed as they say."""

import torch
from scipy import stats

from ganray.config import LatentConfig
from ganray.gan import latents

CPU = torch.device("cpu")


def draw(distribution="normal", *, seed=0, stream="D", step=0, n=4000):
    latent = LatentConfig(distribution, 16)
    return latents.sample(latent, n, rng_seed=seed, stream=stream, step=step, device=CPU)


def test_equal_arguments_give_equal_latents():
    assert torch.equal(draw(), draw())


def test_seed_stream_and_step_each_give_others():
    seen = [draw(), draw(seed=1), draw(stream="G"), draw(step=1)]
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[i + 1 :])


def test_drawing_leaves_torchs_own_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw()
    assert torch.equal(torch.rand(3), expected)


def test_distributions_pass_a_kolmogorov_smirnov_test():
    assert stats.kstest(draw("normal").flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(draw("uniform").flatten().numpy(), "uniform").pvalue > 0.01
