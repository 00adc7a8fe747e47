"""Latents with finitely many values: vectors from a learned codebook, or numbers rounded to a grid.

A vector-quantised latent is the nearest of the codebook's vectors at every position; the gradient passes straight
through to the encoder. The codebook is not learned by gradients: each code is the running mean of the vectors that
chose it. It changes between two steps, on the vectors of all samples of the step, so it does not depend on how the step
was divided into micro-batches and processes.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from vae.posterior import Posterior


class VectorQuantized(Config):
    """A latent that is one of ``codes`` vectors at every position.

    Attributes:
        channels: of the latent, the length of a vector.
        codes: size of the codebook.
        commitment: weight of the squared distance, per element, of the encoder's vectors from their codes.
        decay: of the running means, per step.
        dead_below: a code used less than this share of the even use begins anew at a vector of the step.

    Source: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; Dhariwal et al. 2020, arXiv:2005.00341, for the
    revival of dead codes.
    """

    kind: Literal["vq"] = "vq"
    channels: int = Field(4, ge=1)
    codes: int = Field(512, ge=2)
    commitment: float = Field(0.25, ge=0)
    decay: float = Field(0.99, ge=0, lt=1)
    dead_below: float = Field(0.03, ge=0, lt=1)

    @property
    def features(self) -> int:
        """Channels that the encoder gives."""
        return self.channels


class Codebook(nn.Module):
    """Quantises features and learns its codes by running means.

    Attributes:
        codes: (k, c), the vectors.
        uses: (k,), running mean of how many vectors of a step choose a code; 0 before the first step, when every code
            counts as dead and is drawn from the data.
        sums: (k, c), running mean of the sum of those vectors.
    """

    codes: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(self, config: VectorQuantized) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes", torch.randn(config.codes, config.channels))
        self.register_buffer("uses", torch.zeros(config.codes))
        self.register_buffer("sums", torch.zeros(config.codes, config.channels))

    def forward(self, features: Tensor) -> Posterior:
        """Replace each position's vector of (b, c, h, w) features by its code; learn from "vectors", (b, h w, c)."""
        vectors = rearrange(features, "b c h w -> b h w c")
        quantised = rearrange(self.codes[self.nearest(vectors)], "b h w c -> b c h w").to(features)
        commitment = (features - quantised).square().flatten(1).mean(dim=1)
        metrics = {
            "commitment": commitment,
            "perplexity": self.perplexity().expand(len(features)),
            "vectors": vectors.detach().flatten(1, 2),
        }
        latent = features + (quantised - features).detach()
        return Posterior(latent, torch.zeros_like(latent), self.config.commitment * commitment, metrics)

    @property
    def num_codes(self) -> int:
        """How many there are."""
        return self.config.codes

    def numbers(self, vectors: Tensor) -> Tensor:
        """Give the number of the code (n, 1) of (n, c) latents."""
        return self.nearest(vectors)[:, None]

    def nearest(self, vectors: Tensor) -> Tensor:
        """Give the number of the nearest code (...) of (..., c) vectors."""
        codes = self.codes.to(vectors)
        nearest: Tensor = (codes.square().sum(dim=1) - 2 * vectors @ codes.T).argmin(dim=-1)
        return nearest

    def perplexity(self) -> Tensor:
        """Give how many codes are in use: the exponential of the entropy of their running use."""
        share = self.uses / self.uses.sum().clamp(min=1e-12)
        perplexity: Tensor = torch.special.entr(share).sum().exp()
        return perplexity

    @torch.no_grad()
    def learn(self, vectors: Tensor, generator: np.random.Generator) -> None:
        """Move the codes after a step.

        Args:
            vectors: (n, c), of all samples of the step, in the order of the slots.
            generator: picks the vectors at which dead codes begin anew.
        """
        vectors, rate = vectors.to(self.sums), 1 - self.config.decay
        chosen = F.one_hot(self.nearest(vectors), self.config.codes).to(vectors)  # (n, k)
        self.uses.lerp_(chosen.sum(dim=0), rate)
        self.sums.lerp_(chosen.T @ vectors, rate)
        even = len(vectors) / self.config.codes
        dead = (self.uses <= self.config.dead_below * even).nonzero()[:, 0]
        picked = generator.choice(len(vectors), len(dead), replace=len(dead) > len(vectors))
        self.uses[dead] = even
        self.sums[dead] = even * vectors[torch.from_numpy(picked).to(dead)]
        self.codes.copy_(self.sums / self.uses[:, None])


class FiniteScalar(Config):
    """A latent whose channels are each rounded to a few levels: a codebook that cannot collapse, for it is not learned.

    Attributes:
        levels: of each channel, 3 or more; together they make as many codes as their product.

    Source: Mentzer et al. 2023, arXiv:2309.15505, listing 1, with the inverse of the tanh for an even number of levels.
    """

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field((8, 5, 5, 5), min_length=1)

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        return len(self.levels)

    @property
    def features(self) -> int:
        """Channels that the encoder gives."""
        return self.channels

    @property
    def num_codes(self) -> int:
        """How many there are."""
        return math.prod(self.levels)

    def numbers(self, vectors: Tensor) -> Tensor:
        """Give the level of each channel, counted from the one at 0, of (n, c) latents."""
        return (vectors * vectors.new_tensor([levels // 2 for levels in self.levels])).round().long()

    def __call__(self, features: Tensor) -> Posterior:
        """Round (b, c, h, w) features to the levels, evenly spaced in [-1, 1]; the gradient is that of a tanh."""
        half, shift, middle = (rearrange(features.new_tensor(each), "c -> c 1 1") for each in self._bounds())
        bounded = half * torch.tanh(features + shift) - middle
        scale = rearrange(features.new_tensor([levels // 2 for levels in self.levels]), "c -> c 1 1")
        latent = (bounded + (bounded.round() - bounded).detach()) / scale
        return Posterior(latent, torch.zeros_like(latent), latent.new_zeros(len(latent)), {})

    def _bounds(self) -> tuple[list[float], list[float], list[float]]:
        """Half the width that the tanh is stretched to, the shift that takes 0 to 0, and half a level where even."""
        half = [(levels - 1) * 0.999 / 2 for levels in self.levels]
        middle = [0.0 if levels % 2 else 0.5 for levels in self.levels]
        return half, [math.atanh(m / h) for m, h in zip(middle, half, strict=True)], middle


@dataclass(frozen=True)
class Use:
    """Which codes a set of quantised latents has.

    Attributes:
        num_codes: how many there could be.
        used: how many different ones occur.
        perplexity: the exponential of the entropy of their shares: as many codes in even use say as much.
    """

    num_codes: int
    used: int
    perplexity: float


def use(latents: Tensor, kind: Codebook | FiniteScalar) -> Use:
    """Count the codes of (b, c, h, w) latents that a codebook or a rounding gave."""
    numbers = kind.numbers(rearrange(latents, "b c h w -> (b h w) c"))
    _, counts = numbers.unique(dim=0, return_counts=True)
    entropy = torch.special.entr(counts.double() / len(numbers)).sum()
    return Use(kind.num_codes, len(counts), entropy.exp().item())
