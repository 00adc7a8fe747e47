"""The spectrum of latents: white noise, a single wave, and what blurring takes."""

import math

import pytest
import torch
from torch import Tensor

from vae.spectrum import radial_power


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_white_noise_of_any_scale_has_power_1_everywhere(height: int, width: int) -> None:
    scale = torch.tensor([0.1, 30.0])[:, None, None]
    found = radial_power(scale * noise(400, 2, height, width) + 5 * scale)
    assert found.shape == (min(height, width) // 2 + 1,)
    torch.testing.assert_close(found[1:], torch.ones(len(found) - 1).double(), rtol=0, atol=0.1)


def test_a_wave_has_all_its_power_at_its_frequency() -> None:
    x = torch.arange(16).double()
    wave = torch.cos(2 * math.pi * 3 * x / 16).expand(1, 1, 16, 16)
    found = radial_power(wave)
    at = torch.zeros_like(found, dtype=torch.bool)
    at[3] = True
    assert found[~at].abs().max() < 1e-12
    # |F|^2 / (h w) is 128 at both of its frequencies; 16 frequencies lie between 2.5 and 3.5 cycles
    rows = torch.fft.fftfreq(16, 1 / 16).double()
    num = (torch.hypot(rows[:, None], rows[None]).round() == 3).sum().item()
    assert found[3].item() == pytest.approx(2 * 128 / num)


def test_what_is_blurred_has_less_power_above() -> None:
    maps = noise(50, 1, 16, 16)
    blurred = sum(maps.roll(k, dims=d) for k in (-1, 0, 1) for d in (2, 3))
    found = radial_power(blurred)
    assert found[1] > 2
    assert found[8] < 0.5


def test_a_frequency_counts_in_cycles_of_the_shorter_side() -> None:
    x = torch.arange(24).double()
    wave = torch.cos(2 * math.pi * 6 * x / 24).expand(1, 1, 12, 24)  # 3 cycles in 12 positions
    assert radial_power(wave).argmax() == 3
