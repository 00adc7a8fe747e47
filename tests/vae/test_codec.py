"""Pixels are the codec that changes nothing."""

import torch

from vae.codec import Codec, Pixels


def test_pixels_are_the_identity() -> None:
    codec: Codec = Pixels()
    images = (
        torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2
    )  # beyond [-1, 1]: nothing is clamped
    mean, std = codec.posterior(images)
    assert torch.equal(codec.decode(mean), images)
    assert torch.equal(std, torch.zeros_like(images))
    assert mean.shape[1] == codec.channels
    assert images.shape[-1] // mean.shape[-1] == codec.factor
