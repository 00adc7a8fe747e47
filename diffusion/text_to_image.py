"""A denoiser and the text encoder that conditions it: what is trained, averaged and sampled from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser
from diffusion.framing import NUMBERS, FrameEmbedding
from diffusion.parameterization import Scales
from lab.text.encoder import Prepared, TextEncoder, placed


class TextToImage(nn.Module):
    """A denoiser with its text encoder.

    Args:
        denoiser: (x_t, t, cond) -> x0_hat.
        text: prompts to token states, a module; what of it is trained, is trained with the denoiser.
        frame: tells the denoiser which part of which original a picture shows; ``None`` where it is not told.
    """

    text: TextEncoder

    def __init__(self, denoiser: Denoiser, text: TextEncoder, frame: FrameEmbedding | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text = text
        self.frame = frame

    def forward(
        self, x_t: Tensor, t: Tensor, prepared: Prepared, frames: Tensor | None = None
    ) -> tuple[Tensor, Scales]:
        """Give the network's own output for (b, c, h, w) states, (b,) times and b texts: the pass that trains.

        Args:
            x_t, t, prepared: what is asked.
            frames: (b, 4), of ``diffusion.framing.numbers``; ``None`` where all are whole and of the network's size.
        """
        return self.denoiser.predict(x_t, t, self.condition(prepared, frames))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], frames: Tensor | None = None) -> Cond:
        """Encode b prompts, of pictures with such frames as in ``forward``; the empty prompt is the null."""
        weight = next(self.parameters())
        told = None if frames is None else frames.to(weight)
        return self.condition(placed(self.text.prepare(prompts), weight.device), told)

    def condition(self, prepared: Prepared, frames: Tensor | None = None) -> Cond:
        """Give what the denoiser is told of b texts and of the frames of b pictures; see ``forward``."""
        cond = Cond(*self.text(prepared))
        if self.frame is None:
            return cond
        told = cond.pooled.new_zeros(len(cond.pooled), NUMBERS) if frames is None else frames
        return cond._replace(pooled=cond.pooled + self.frame(told))
