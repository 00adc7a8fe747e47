"""Guidance: what a scale means, and what it costs."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoise, Denoiser
from diffusion.guidance import classifier_free, conditional
from diffusion.parameterization import X0
from diffusion.schedule import Cosine


class Network(nn.Module):
    """Says a different thing for each condition and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x))
        return (
            x * (1 + angle).view(-1, 1, 1, 1)
            + cond.pooled.view(-1, 1, 1, 1)
            + cond.tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        )


def said(value: float) -> Cond:
    each = torch.arange(3, dtype=torch.float64) + value
    return Cond(each.view(3, 1, 1).expand(3, 4, 5), torch.ones(3, 4, dtype=torch.bool), each.view(3, 1))


X, T = (
    torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64),
)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Network(), Cosine(), X0())


def test_scale_1_is_the_conditional_itself_in_one_pass(denoiser: Denoiser) -> None:
    guided = classifier_free(denoiser, said(0.5), said(-1), 1)
    assert torch.equal(guided(X, T), denoiser(X, T, said(0.5)))
    assert denoiser.network.batches == [3, 3]


def test_scale_0_is_the_null(denoiser: Denoiser) -> None:
    torch.testing.assert_close(
        classifier_free(denoiser, said(0.5), said(-1), 0)(X, T), denoiser(X, T, said(-1)), rtol=0, atol=0
    )


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_any_scale_lies_on_the_line_through_both(denoiser: Denoiser, scale: float) -> None:
    wanted, unwanted = denoiser(X, T, said(0.5)), denoiser(X, T, said(-1))
    guided: Denoise = classifier_free(denoiser, said(0.5), said(-1), scale)
    torch.testing.assert_close(guided(X, T), (1 - scale) * unwanted + scale * wanted)
    assert denoiser.network.batches[-1] == 6  # both in one batch


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_null_equal_to_the_condition_guides_nowhere(denoiser: Denoiser, scale: float) -> None:
    torch.testing.assert_close(
        classifier_free(denoiser, said(0.5), said(0.5), scale)(X, T), conditional(denoiser, said(0.5))(X, T)
    )
