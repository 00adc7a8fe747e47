"""What a picture was cut out of: told to the network, and learned from."""

import math
from collections.abc import Callable

import torch
from torch import nn

from diffusion.framing import NUMBERS, FrameEmbedding, numbers
from diffusion.stage import DiffusionConfig, DiffusionStage, build
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNetConfig
from lab.data.loader import Batch
from lab.data.source import Frame
from lab.frozen import Frozen
from lab.randomness import normal
from lab.runtime import CPU
from lab.text.clip import ClipConfig, vocabulary
from superres.stage import SourceText
from vae.codec import Pixels

CONFIG = DiffusionConfig(
    unet=UNetConfig(widths=(16, 16), depth=1, middle=1, attention=(1,), head_width=16), frames=True
)
TEXT = ClipConfig(width=16, heads=2, layers=1, context=8, vocabulary=vocabulary(["a cat"]))
Tiny = Callable[..., TextToImage]
SMALL, CUT = Frame(8, 16), Frame(64, 32, 16, 8)


def batch(*frames: Frame | None) -> Batch:
    slots = tuple(range(len(frames)))
    images = normal(0, "image", slots, (3, 16, 16))
    return Batch(images, ("a cat",) * len(frames), slots, tuple(map(str, slots)), seed=0, frames=frames)


def stage(model: TextToImage) -> DiffusionStage:
    return DiffusionStage(CONFIG, model, Pixels(), 16, CPU)


def test_a_frame_is_octaves_of_its_sides_and_shares_that_are_cut_off() -> None:
    found = numbers((SMALL, CUT, None, Frame(16, 16)), 4, 16)
    torch.testing.assert_close(found[:2], torch.tensor([[-1.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.25, 0.25]]))
    assert not found[2:].any()
    torch.testing.assert_close(numbers((), 3, 16), torch.zeros(3, NUMBERS))


def test_frames_that_differ_by_less_than_an_octave_are_told_apart() -> None:
    embedding = FrameEmbedding(8)
    nn.init.normal_(embedding.layers[2].weight)
    steps = torch.tensor([[math.log2(side / 64), 0, 0, 0] for side in (16, 20, 64, 70, 1024)])
    made = embedding(steps)
    distances = torch.cdist(made, made) + 10 * torch.eye(len(made))
    assert distances.min() > 0.01


def test_the_loss_hears_the_frame_of_its_own_sample(tiny: Tiny) -> None:
    model = tiny(frames=True)
    made = stage(model)
    whole, mixed = (made.loss("model", each)[0] for each in (batch(None, None), batch(None, CUT)))
    torch.testing.assert_close(mixed[0], whole[0])
    assert (mixed[1] - whole[1]).abs() > 1e-6
    by_level = [made.losses_by_level(model, each, levels=2) for each in (batch(None, None), batch(None, CUT))]
    torch.testing.assert_close(by_level[1][0], by_level[0][0])
    assert (by_level[1][1] - by_level[0][1]).abs().min() > 1e-6


def test_at_birth_frames_change_nothing_and_without_them_there_is_nothing_to_learn() -> None:
    born = stage(build(CONFIG, TEXT, Pixels(), seed=0))
    torch.testing.assert_close(born.loss("model", batch(None, CUT)), born.loss("model", batch(None, None)))
    deaf = build(CONFIG.model_copy(update={"frames": False}), TEXT, Pixels(), seed=0)
    assert deaf.frame is None
    names = dict(build(CONFIG, TEXT, Pixels(), seed=0).named_parameters())
    assert set(names) - set(dict(deaf.named_parameters())) == {name for name in names if name.startswith("frame.")}


def test_what_is_drawn_is_told_to_be_whole_also_where_the_model_has_grown(tiny: Tiny) -> None:
    model = tiny(frames=True)
    prepared = model.text.prepare(["a cat"])
    whole = model.condition(prepared, numbers((None,), 1, 16))
    asked = model.encode(["a cat"])
    torch.testing.assert_close(asked.pooled, whole.pooled)
    assert (model.condition(prepared, numbers((CUT,), 1, 16)).pooled - whole.pooled).abs().max() > 0.01
    grown = SourceText(Frozen(model))
    torch.testing.assert_close(grown(prepared).pooled, whole.pooled)
