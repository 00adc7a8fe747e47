"""The building blocks that every network of the house shares.

Feature maps are (b, c, h, w), token sequences (b, l, d). A residual branch ends in a zero-initialised layer, so each
block is the identity at birth. Normalisation and softmax run in float32 under autocast, everything else in the autocast
type.

What knows about noise levels beyond the embedding of a number, or about text beyond tokens and a mask, does not belong
here.
"""

import math
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
NormKind = Literal["group", "position"]

GROUP_WIDTH = 16  # channels that share one mean and variance in a group norm
QUERY_GAIN = 3.0  # of the places that cross-attention queries hear: they start at deviation 1.2, what is there at 1
_EDGE = "is_edge"


def zero_init(layer: Layer) -> Layer:
    """Set a layer's weight and bias to zero, so that the branch it ends adds nothing at birth."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def edge(layer: Layer) -> Layer:
    """Mark a layer as a network's first or last: its weight is no map between hidden features."""
    setattr(layer.weight, _EDGE, True)
    return layer


def is_edge(parameter: nn.Parameter) -> bool:
    """Whether a parameter belongs to a layer that was marked by ``edge``."""
    return getattr(parameter, _EDGE, False) is True


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mix values by the softmax of query-key products.

    Args:
        query: (b, n, l, d), n heads.
        key, value: (b, n, m, d).
        mask: (b, m) bool, True = may be attended to; every row needs one True.

    Returns:
        (b, n, l, d).
    """
    if query.device.type != "cpu":
        keep = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
    # At the few tokens of a small model plain products beat the fused CPU kernel, forward and backward.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (b, n, l, m)
    if mask is not None:
        scores = scores.masked_fill(~rearrange(mask, "b m -> b 1 1 m"), -math.inf)
    mixed: Tensor = scores.softmax(dim=-1).to(value.dtype) @ value
    return mixed


class Recomputable(nn.Module):
    """A block whose inner activations can be computed a second time on the way back instead of being kept.

    Attributes:
        recompute: whether ``run`` does so; set by ``lab.runtime``.
    """

    recompute = False

    def run(self, *inputs: Any) -> Any:
        """Call the block, keeping no more than its inputs where that is asked for and a gradient is wanted."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self, *inputs, use_reentrant=False)
        return self(*inputs)


class LevelEmbedding(nn.Module):
    """Turn one number in [0, pi/2], the angle of a noise level, into a vector.

    Cosines and sines of geometrically spaced multiples of the angle, then two linear layers.

    Args:
        width: size of the result; even.
        highest: largest multiple; levels closer than about 1 / highest look alike.
    """

    multiples: Tensor

    def __init__(self, width: int, highest: float = 128.0) -> None:
        super().__init__()
        self.register_buffer("multiples", torch.logspace(0, math.log10(highest), width // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, angle: Tensor) -> Tensor:
        """Embed (b,) angles as (b, width)."""
        phase = rearrange(angle, "b -> b 1") * self.multiples.to(angle.dtype)
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1) * math.sqrt(2)
        embedded: Tensor = self.mlp(waves)
        return embedded


class PlaceEmbedding(nn.Module):
    """Tell every position of a feature map where it is, at any size.

    Cosines and sines of the position's x and y, each scaled to [0, 1] over the map, through one linear layer.

    Args:
        width: channels of the result.
        waves: frequencies per axis; the k-th makes k / 2 turns over the map.
        gain: factor on the features; at 1 their deviation starts at about 0.4.
    """

    frequencies: Tensor

    def __init__(self, width: int, waves: int = 8, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.register_buffer("frequencies", math.pi * torch.arange(1, waves + 1, dtype=torch.float32), persistent=False)
        self.linear = nn.Linear(4 * waves, width)

    def forward(self, height: int, width: int) -> Tensor:
        """Give (1, c, height, width) features, c the channels, for a map of this size."""
        frequencies = self.frequencies
        y, x = (
            torch.outer((torch.arange(n, device=frequencies.device) + 0.5) / n, frequencies) for n in (height, width)
        )
        rows = torch.cat([y.cos(), y.sin()], dim=-1)[:, None].expand(-1, width, -1)
        columns = torch.cat([x.cos(), x.sin()], dim=-1)[None].expand(height, -1, -1)
        features: Tensor = self.linear(torch.cat([rows, columns], dim=-1).to(self.linear.weight.dtype))
        return rearrange(self.gain * features, "h w d -> 1 d h w")


class PositionNorm(nn.Module):
    """Bring the channels of every position to mean 0 and variance 1: no position hears of another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, c, h, w) over c."""
        normalised: Tensor = rearrange(self.norm(rearrange(x, "b c h w -> b h w c")), "b h w c -> b c h w")
        return normalised


def normalisation(kind: NormKind, width: int) -> nn.Module:
    """Give the norm of a feature map: over all positions and a group of channels, or position by position."""
    return nn.GroupNorm(max(width // GROUP_WIDTH, 1), width) if kind == "group" else PositionNorm(width)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a per-channel scale and shift (FiLM) from an embedding.

    Args:
        inputs, outputs: channels.
        embedding: width of the conditioning vector; 0 for none.
        dropout: probability before the second convolution.
        norm: before each convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int = 0, dropout: float = 0.0, norm: NormKind = "group"
    ) -> None:
        super().__init__()
        self.norm1 = normalisation(norm, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = zero_init(nn.Linear(embedding, 2 * outputs)) if embedding else None
        self.norm2 = normalisation(norm, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (b, inputs, h, w) and (b, embedding) to (b, outputs, h, w)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None:
            assert embedding is not None
            scale, shift = rearrange(self.film(embedding), "b (two c) -> two b c 1 1", two=2)
            h = torch.addcmul(shift, h, 1 + scale)
        residual: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return residual


class Attention(nn.Module):
    """Multi-head attention from a sequence to itself or to a context, with its own norm.

    Args:
        width: of the sequence.
        heads: number of heads; divides ``width``.
        context: width of the context; ``None`` for self-attention.
    """

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width if context is None else context, 2 * width, bias=False)
        self.out = zero_init(nn.Linear(width, width))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Give what attention adds to x.

        Args:
            x: (b, l, d).
            context: (b, m, context) or ``None`` for x itself.
            mask: (b, m) bool, True = may be attended to.
            places: (1, l, d), where the positions of x are; only the queries hear it, undiluted by what is there.

        Returns:
            (b, l, d), to be added to x.
        """
        x = self.norm(x)
        query = rearrange(self.query(x if places is None else x + places), "b l (n d) -> b n l d", n=self.heads)
        pair = self.key_value(x if context is None else context)
        key, value = rearrange(pair, "b m (two n d) -> two b n m d", two=2, n=self.heads)
        mixed: Tensor = self.out(rearrange(attend(query, key, value, mask), "b n l d -> b l (n d)"))
        return mixed


class FeedForward(nn.Module):
    """A norm and two linear layers with a GELU between them; gives what is to be added."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, expansion * width)
        self.out = zero_init(nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, l, d) to what is to be added to it."""
        added: Tensor = self.out(F.gelu(self.wide(self.norm(x)), approximate="tanh"))
        return added


class Transformer(nn.Module):
    """Self-attention, cross-attention to text tokens and a feed-forward layer over the positions of a feature map.

    The queries of the cross-attention are told their place, as loud as what is there: which object of the text a place
    is about must be learned where the state is almost pure noise (docs/log.md, 2026-11-25, "where, and of what").

    Args:
        width: channels of the map.
        heads: attention heads.
        context: width of the text tokens; ``None`` leaves the cross-attention out.
    """

    def __init__(self, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.cross_attention = None if context is None else Attention(width, heads, context)
        self.place = None if context is None else PlaceEmbedding(width, gain=QUERY_GAIN)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map (b, d, h, w), with (b, l, context) tokens and their (b, l) mask, to (b, d, h, w)."""
        height = x.shape[-2]
        h = rearrange(x, "b d h w -> b (h w) d")
        h = h + self.self_attention(h)
        if self.cross_attention is not None:
            assert self.place is not None
            places = rearrange(self.place(height, x.shape[-1]), "b d h w -> b (h w) d")
            h = h + self.cross_attention(h, tokens, mask, places)
        h = h + self.feed_forward(h)
        mixed: Tensor = rearrange(h, "b (h w) d -> b d h w", h=height)
        return mixed


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h / 2, w / 2)."""
        halved: Tensor = self.conv(x)
        return halved


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, 2 h, 2 w)."""
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled
