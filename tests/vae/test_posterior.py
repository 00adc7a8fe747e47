"""Gaussian latents against closed forms."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vae.posterior import LOGVAR_LIMITS, Gaussian, Posterior, kl


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_and_its_gradient_are_those_of_gaussians() -> None:
    mean, logvar = drawn(2, 3, 5, 7).requires_grad_(), drawn(2, 3, 5, 7, seed=1).requires_grad_()
    found = kl(mean, logvar)
    exact = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, exact)
    slopes = torch.autograd.grad(found.sum(), (mean, logvar))
    torch.testing.assert_close(slopes, (mean / 105, 0.5 * (logvar.exp() - 1) / 105))


def test_the_divergence_of_a_latent_is_the_same_at_every_size() -> None:
    mean, logvar = drawn(1, 3, 5, 7), drawn(1, 3, 5, 7, seed=1)
    torch.testing.assert_close(kl(mean.repeat(1, 1, 4, 3), logvar.repeat(1, 1, 4, 3)), kl(mean, logvar))


def test_features_are_read_as_mean_and_clamped_logarithm_of_the_variance() -> None:
    config = Gaussian(channels=3, weight=0.5)
    features = drawn(2, config.features, 4, 4)
    features[0, 3:], features[1, 3:] = -100.0, 100.0
    posterior = config(features)
    assert torch.equal(posterior.mean, features[:, :3])
    low, high = (torch.tensor(limit).double().mul(0.5).exp() for limit in LOGVAR_LIMITS)
    torch.testing.assert_close(posterior.std[:, 0, 0, 0], torch.stack([low, high]))
    torch.testing.assert_close(posterior.penalty, 0.5 * posterior.metrics["kl"])
    assert posterior.penalty.isfinite().all()


@pytest.mark.parametrize("std", [0.0, 2.0])
def test_a_sample_is_the_mean_and_a_multiple_of_the_noise(std: float) -> None:
    mean, noise = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1)
    posterior = Posterior(mean, torch.full_like(mean, std), torch.zeros(2), {})
    torch.testing.assert_close(posterior.sample(noise), mean + std * noise)
