"""Prompts to large pictures: a model draws, and upscalers make what it has drawn larger, one after the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from diffusion.pipeline import Pipeline, Poll, Request
from lab.images import Shape, from_uint8, to_uint8
from superres.fast import Enlarger
from vae.codec import Codec


class Upscaler(Protocol):
    """Makes pictures larger; whatever draws with it must not depend on which pictures come together.

    Attributes:
        factor: side of a result / side of a picture.
    """

    @property
    def factor(self) -> int: ...

    def __call__(self, images: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        """Enlarge pictures.

        Args:
            images: (b, 3, h, w) float32 on the CPU, in [-1, 1].
            requests: what each shows, and which of its prompt's pictures it is: its randomness is that of (seed,
                number).
            seed: of the drawing.
            poll: called often; what it raises ends the work.

        Returns:
            (b, 3, factor h, factor w) float32 on the CPU, not clamped.
        """
        ...


@dataclass(frozen=True)
class OnePass:
    """A fast decoder as an upscaler: it hears no prompt and draws nothing at random.

    Attributes:
        enlarge: the decoder.
    """

    enlarge: Enlarger

    @property
    def factor(self) -> int:
        """Side of a result / side of a picture."""
        return self.enlarge.factor

    def __call__(self, images: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        """Enlarge pictures one by one; see ``Upscaler``."""
        enlarged = []
        for image in images.split(1):
            poll()
            enlarged.append(self.enlarge(image))
        return torch.cat(enlarged)


class Straight:
    """A codec whose latents are decoded straight to larger pictures; see ``vae.codec.Codec``.

    Args:
        codec: of the latents.
        enlarge: a fast decoder that was trained on them.
    """

    def __init__(self, codec: Codec, enlarge: Enlarger) -> None:
        self.codec, self.enlarge = codec, enlarge
        self.channels, self.factor = codec.channels, codec.factor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode small pictures."""
        return self.codec.posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to large pictures, as many times larger as the decoder makes them; not clamped."""
        return self.enlarge.decode(latents)


def shape(pipeline: Pipeline, upscalers: Sequence[Upscaler]) -> Shape:
    """Give the shape of what a pipeline draws when it has passed the upscalers."""
    height, width = pipeline.shape or (pipeline.size, pipeline.size)
    factor = prod(upscaler.factor for upscaler in upscalers)
    if isinstance(pipeline.codec, Straight):
        factor *= pipeline.codec.enlarge.factor
    return factor * height, factor * width


def enlarged(
    drawn: Iterable[Tensor], upscalers: Sequence[Upscaler], requests: Sequence[Request], seed: int, poll: Poll
) -> Iterator[Tensor]:
    """Let pictures pass upscalers, each time as a file would hold them.

    Args:
        drawn: chunks of (k, 3, h, w), in the order of the requests, as ``Pipeline.draw`` gives them.
        upscalers: in the order in which they are passed; with none the chunks are given as they come.
        requests, seed, poll: of the drawing.
    """
    done = 0
    for images in drawn:
        wanted, large = requests[done : done + len(images)], images
        for upscaler in upscalers:
            large = upscaler(from_uint8(to_uint8(large)), wanted, seed, poll)
        done += len(wanted)
        yield large
