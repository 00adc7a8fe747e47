"""Prompts to large pictures: a model draws, and upscalers make what it has drawn larger, one after the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.pipeline import Poll, Request
from lab.images import from_uint8, to_uint8
from lab.resampling import bicubic
from superres.fast import Enlarger
from vae.codec import Codec


class Upscaler(Protocol):
    """Makes pictures larger; whatever draws with it must not depend on which pictures come together.

    Attributes:
        factor: side of a result / side of a picture.
    """

    @property
    def factor(self) -> int: ...

    def within(self, chunk: int) -> "Upscaler":
        """Give the same, with at most so many pictures in a pass of its network: there they fit into memory."""
        ...

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

    def within(self, chunk: int) -> "OnePass":
        """Give itself, which takes one at a time."""
        return self

    def __call__(self, images: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        """Enlarge pictures one by one; see ``Upscaler``."""
        enlarged = []
        for image in images.split(1):
            enlarged.append(self.enlarge(image, poll))
        return torch.cat(enlarged)


class Straight:
    """A codec whose latents, of small pictures, are decoded straight to large ones; see ``vae.codec.Codec``.

    Args:
        codec: of the small pictures.
        enlarge: a fast decoder that was trained on them.
    """

    def __init__(self, codec: Codec, enlarge: Enlarger) -> None:
        self.codec, self.enlarge = codec, enlarge
        self.channels, self.factor = codec.channels, codec.factor * enlarge.factor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode large pictures, made small by a bicubic filter."""
        height, width = (side // self.enlarge.factor for side in images.shape[2:])
        return self.codec.posterior(bicubic(images, (height, width)))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to large pictures; not clamped."""
        return self.enlarge.decode(latents)


def enlarged(
    drawn: Iterable[Tensor],
    upscalers: Sequence[Upscaler],
    requests: Sequence[Request],
    seed: int,
    chunk: int,
    poll: Poll,
) -> Iterator[Tensor]:
    """Let pictures pass upscalers, each time as a file would hold them.

    Args:
        drawn: chunks of (k, 3, h, w), in the order of the requests, as ``Pipeline.draw`` gives them.
        upscalers: in the order in which they are passed; with none the chunks are given as they come.
        requests, seed, chunk, poll: of the drawing; an upscaler that takes fewer than ``chunk`` at a time still does.
    """
    done, upscalers = 0, [upscaler.within(chunk) for upscaler in upscalers]
    for images in drawn:
        wanted, large = requests[done : done + len(images)], images
        for upscaler in upscalers:
            large = upscaler(from_uint8(to_uint8(large)), wanted, seed, poll)
        done += len(wanted)
        yield large
