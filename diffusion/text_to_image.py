"""A denoiser and the text encoder that conditions it: what is trained, averaged and sampled from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser
from diffusion.parameterization import Scales
from lab.text.encoder import Prepared, TextEncoder, placed


class TextToImage(nn.Module):
    """A denoiser with its text encoder.

    Args:
        denoiser: (x_t, t, cond) -> x0_hat.
        text: prompts to token states, a module; what of it is trained, is trained with the denoiser.
    """

    text: TextEncoder

    def __init__(self, denoiser: Denoiser, text: TextEncoder) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text = text

    def forward(self, x_t: Tensor, t: Tensor, prepared: Prepared) -> tuple[Tensor, Scales]:
        """Give the network's own output for (b, c, h, w) states, (b,) times and b texts: the pass that trains."""
        return self.denoiser.predict(x_t, t, Cond(*self.text(prepared)))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts; the empty prompt is the null condition."""
        device = next(self.parameters()).device
        return Cond(*self.text(placed(self.text.prepare(prompts), device)))
