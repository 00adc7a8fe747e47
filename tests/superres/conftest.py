"""What the tests of the third floor share: tiny sources, and what is grown on them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from diffusion.stage import DiffusionConfig
from diffusion.stage import build as build_source
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNetConfig
from lab.randomness import seeded
from lab.text.clip import ClipConfig, vocabulary
from superres.stage import GrownConfig, build
from vae.codec import Pixels

WORDS = ("a red circle above a blue square", "a green ring below two white crosses")


def wake(module: nn.Module) -> None:
    """Make of it what it might be after some training: no weight is zero, so no branch is closed."""
    with seeded(0, "awake"), torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def source() -> Callable[..., TextToImage]:
    """Builds a model of a few thousand weights, awake, in eval mode and float64, for images of 8 x 8."""

    def make(**settings: object) -> TextToImage:
        network = UNetConfig(patch=2, widths=(16, 32), depth=1, middle=1, attention=(1,), head_width=16)
        text = ClipConfig(width=16, heads=2, layers=1, context=12, vocabulary=vocabulary(WORDS))
        model = build_source(DiffusionConfig.model_validate({"unet": network, **settings}), text, Pixels(), seed=0)
        wake(model)
        return model.eval().double()

    return make


@pytest.fixture
def grow() -> Callable[..., TextToImage]:
    """Grows a model in float64 by one level of 16 channels: as it is born, or awake."""

    def make(source: TextToImage, awake: bool = False, **settings: object) -> TextToImage:
        given = {"source": "somewhere", "levels": {"widths": (16,), "depth": 1}, **settings}
        model = build(GrownConfig.model_validate(given), source, seed=0)
        if awake:
            wake(model)
        return model.eval().double()

    return make
