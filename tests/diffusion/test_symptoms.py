"""A look at a model: each fault planted at three strengths is found, and a model in order has none.

The model is a tiny one that has learned which of four colours which caption means.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion import symptoms
from diffusion.schedule import Karras
from diffusion.stage import DiffusionConfig, DiffusionStage, build
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNetConfig
from lab.data.loader import Batch
from lab.randomness import normal, seeded
from lab.runtime import CPU
from lab.text.clip import ClipConfig, vocabulary
from lab.text.encoder import Prepared, TextStates
from lab.training.symptoms import Symptom
from vae.codec import Pixels

COLOURS = {
    "circle above square": (0.9, -0.9, -0.9),
    "square above circle": (-0.9, -0.9, 0.9),
    "circle below square": (-0.9, 0.9, -0.9),
    "square below circle": (0.9, 0.9, 0.9),
}
UNET = UNetConfig(patch=2, widths=(16, 32), depth=1, middle=1, attention=(0, 1), head_width=16)
TEXT = ClipConfig(width=16, heads=2, layers=1, context=8, vocabulary=vocabulary(list(COLOURS)))
SAMPLING = {"steps": 6, "guidance": 1.5, "chunk": 16}


def batch(num: int = 32, start: int = 0) -> Batch:
    slots = range(start, start + num)
    captions = tuple(list(COLOURS)[slot * 7 % 4] for slot in slots)
    flat = torch.tensor([COLOURS[caption] for caption in captions])[..., None, None].expand(-1, -1, 8, 8)
    images = (flat + 0.05 * normal(0, "texture", slots, (3, 8, 8))).clamp(-1, 1)
    return Batch(images, captions, tuple(slots), ("",) * num, 0)


def stage(model: TextToImage, **settings: object) -> DiffusionStage:
    given = {"unet": UNET, "sampling": SAMPLING, **settings}
    return DiffusionStage(DiffusionConfig.model_validate(given), model, Pixels(), 8, CPU)


@pytest.fixture(scope="module")
def born() -> TextToImage:
    return build(DiffusionConfig(unet=UNET), TEXT, Pixels(), seed=0).eval()


@pytest.fixture(scope="module")
def trained(born: TextToImage) -> TextToImage:
    model = copy.deepcopy(born)
    made, optimizer = stage(model), torch.optim.Adam(model.parameters(), 5e-3, fused=True)
    with seeded(0, "test"):
        for step in range(100):
            optimizer.zero_grad()
            made.loss("model", batch(start=32 * step))[0].mean().backward()
            optimizer.step()
    return model.requires_grad_(False)


def names(found: Sequence[Symptom | None]) -> set[str]:
    return {symptom.name for symptom in found if symptom and symptom.is_ill}


def everything(made: DiffusionStage, raw: nn.Module) -> list[Symptom | None]:
    model, given = made.players["model"], batch()
    return [
        symptoms.of_data(given.images.min().item(), given.images.max().item(), len(given)),
        symptoms.of_latents(made, given),
        *symptoms.of_settings(made),
        symptoms.of_average(made, model, raw, given),
        *symptoms.of_text(made, model, given),
        symptoms.of_samples(made, model, given, made.config.sampling),
    ]


def test_a_model_in_order_has_no_finding(trained: TextToImage) -> None:
    found = everything(stage(trained), trained)
    assert names(found) == set()
    assert len([symptom for symptom in found if symptom]) == 7


@pytest.mark.parametrize(("factor", "shift"), [(0.5, 0.5), (127.5, 127.5), (1.05, 0.0)])
def test_data_out_of_range_is_found(factor: float, shift: float) -> None:
    images = batch().images * factor + shift
    assert names([symptoms.of_data(images.min().item(), images.max().item(), 32)]) == {"data out of range"}


@pytest.mark.parametrize(("scale", "shift"), [(0.18215, 0.0), (5.5, 0.0), (1.0, 0.8)])
def test_latents_off_scale_are_found(trained: TextToImage, scale: float, shift: float) -> None:
    class Halved(Pixels):
        factor = 2

        def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
            own = (images - images.mean()) / images.std() * self.scale + self.shift
            return own, torch.zeros_like(own)

        scale, shift = 1.0, 0.0

    made = stage(trained)
    made.codec = codec = Halved()
    assert names([symptoms.of_latents(made, batch())]) == set()
    codec.scale, codec.shift = scale, shift
    assert names([symptoms.of_latents(made, batch())]) == {"latents off scale"}


@pytest.mark.parametrize("sigma_max", [14.0, 20.0, 45.0])
def test_signal_at_the_last_step_is_found(trained: TextToImage, sigma_max: float) -> None:
    made = stage(trained, schedule=Karras(sigma_max=sigma_max))
    found = symptoms.of_settings(made)
    assert names(found) == {"signal at the last step"}
    assert "raise schedule.sigma_max" in found[0].remedy


@pytest.mark.parametrize(("drop", "guidance"), [(0, 1.5), (0, 4), (0, 12), (0.6, 1.5), (0.8, 1), (1, 3)])
def test_a_null_condition_that_was_not_trained_is_found(trained: TextToImage, drop: float, guidance: float) -> None:
    made = stage(trained, caption_drop=drop, sampling={**SAMPLING, "guidance": guidance})
    assert names(symptoms.of_settings(made)) == {"null condition"}
    assert names(symptoms.of_settings(stage(trained, caption_drop=0, sampling={**SAMPLING, "guidance": 1}))) == set()


@pytest.mark.parametrize("share", [0.6, 0.8, 1.0])
def test_an_average_that_remembers_the_beginning_is_found(
    born: TextToImage, trained: TextToImage, share: float
) -> None:
    lagging = copy.deepcopy(trained)
    for weight, first in zip(lagging.parameters(), born.parameters(), strict=True):
        weight.lerp_(first.detach(), share)
    assert names([symptoms.of_average(stage(trained), lagging, trained, batch())]) == {"the average lags"}


class Bag(nn.Module):
    """A text encoder that hears words, or some of them, and not their order."""

    def __init__(self, text: Any, heard: frozenset[str]) -> None:
        super().__init__()
        self.text, self.heard = text, heard
        self.width, self.pooled_width, self.context, self.num_prepared = (
            getattr(text, name) for name in ("width", "pooled_width", "context", "num_prepared")
        )

    def prepare(self, prompts: Sequence[str]) -> Prepared:
        sorted_ = [" ".join(sorted(word for word in prompt.split() if word in self.heard)) for prompt in prompts]
        prepared: Prepared = self.text.prepare(sorted_)
        return prepared

    def forward(self, prepared: Prepared) -> TextStates:
        states: TextStates = self.text(prepared)
        return states


@pytest.mark.parametrize("heard", ["circle square above below", "above below", "circle above"])
def test_order_that_is_not_heard_is_found(trained: TextToImage, heard: str) -> None:
    model = copy.deepcopy(trained)
    model.text = Bag(model.text, frozenset(heard.split()))
    assert "deaf to word order" in names(symptoms.of_text(stage(model), model, batch()))


@pytest.mark.parametrize("deaf", ["words", "attention", "born"])
def test_text_that_is_not_heard_is_found(born: TextToImage, trained: TextToImage, deaf: str) -> None:
    model = copy.deepcopy(born if deaf == "born" else trained)
    if deaf == "words":
        model.text = Bag(model.text, frozenset())
    elif deaf == "attention":
        model.text.register_forward_hook(lambda _, __, s: TextStates(s.tokens * 0, s.mask, s.pooled * 0))  # type: ignore[attr-defined]
    assert names(symptoms.of_text(stage(model), model, batch())) == {"deaf to text", "deaf to word order"}


def test_data_that_says_the_same_of_everything_is_not_asked_whether_it_is_heard(trained: TextToImage) -> None:
    given = batch()
    alike = Batch(given.images, ("",) * 32, given.slots, given.ids, given.seed)
    assert symptoms.of_text(stage(trained), trained, alike) == []


def test_a_model_that_is_not_finite_is_never_in_order(trained: TextToImage) -> None:
    model = copy.deepcopy(trained)
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(torch.nan)
    given = batch()
    found = [symptoms.of_average(stage(model), model, trained, given), *symptoms.of_text(stage(model), model, given)]
    assert names(found) == {"the average lags", "deaf to text"}


@pytest.mark.parametrize(("scale", "contrast"), [(0.0, 1), (0.2, 1), (0.4, 1), (1.0, 0.5), (1.0, 0.1), (10, 0.5)])
def test_grey_and_burnt_samples_are_found(trained: TextToImage, scale: float, contrast: float) -> None:
    model, given = copy.deepcopy(trained), batch()
    model.denoiser.register_forward_hook(lambda _, __, x0: x0 * scale)
    given = given.with_images(given.images * contrast)
    found = symptoms.of_samples(stage(model), model, given, stage(model).config.sampling)
    assert ("grey" if scale < 1 else "burnt") in found.remedy
