"""What the tests of the diffusion core share: an exact denoiser for Gaussian data, and a tiny model that is awake."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from diffusion.schedule import Schedule
from diffusion.stage import DiffusionConfig, build
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNetConfig
from lab.randomness import seeded
from lab.text.clip import ClipConfig, vocabulary
from vae.codec import Pixels

WORDS = ("a red circle above a blue square", "a green ring below two white crosses")


class Gaussian(NamedTuple):
    """Data distributed as N(mean, std^2), independently per pixel: everything about it is known."""

    mean: float
    std: float
    schedule: Schedule

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t], by the rule of Bayes."""
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.schedule(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def spread(self, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        return (alpha**2 * self.std**2 + sigma**2).sqrt()

    def flow(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where the probability flow carries a state: to the same quantile of the other time's normal."""
        (here, _), (there, _) = self.schedule(start), self.schedule(end)
        return there * self.mean + self.spread(end) / self.spread(start) * (x - here * self.mean)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread, for minutes where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gaussian() -> type[Gaussian]:
    return Gaussian


@pytest.fixture(scope="session")
def awaken() -> Callable[[nn.Module], nn.Module]:
    """Gives what a network might be after some training: no weight is zero, so no branch is closed."""

    def wake(module: nn.Module) -> nn.Module:
        with seeded(0, "awake"), torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module.eval()

    return wake


@pytest.fixture
def tiny(awaken: Callable[[nn.Module], nn.Module]) -> Callable[..., TextToImage]:
    """Builds a model of a few thousand weights, awake, in eval mode, for images of 8 x 8."""

    def make(**settings: object) -> TextToImage:
        network = UNetConfig(patch=2, widths=(16, 32), depth=1, middle=1, attention=(0, 1), head_width=16)
        text = ClipConfig(width=16, heads=2, layers=1, context=12, vocabulary=vocabulary(WORDS))
        model = build(DiffusionConfig.model_validate({"unet": network, **settings}), text, Pixels(), seed=0)
        awaken(model)
        return model

    return make
