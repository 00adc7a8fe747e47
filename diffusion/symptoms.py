"""What is wrong with a text-to-image model, as far as a look at it and at its data tells.

Each check asks one question that people spend days on: is the data in range, have latents unit scale, is the last step
of sampling pure noise, does the average follow the weights, is there a null condition to be guided away from, is the
text heard, and its order, and are samples pictures at all?
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.pipeline import Request, SamplingConfig
from diffusion.stage import SIGNAL_WARNED, DiffusionStage, more_noise
from lab.data.loader import Batch
from lab.data.value_range import DARKEST
from lab.evaluation.intervals import mean
from lab.randomness import key
from lab.training.symptoms import Symptom
from vae.codec import latents

SCALE = (0.6, 1.6)  # standard deviation of a latent's channel
CENTRE = 0.5  # its mean, in either direction
LAG = 1.15  # times the loss of the weights themselves that their average may have
DROP = 0.5  # share of captions that may be dropped
FAINT = 0.001  # of its size, by which an answer moves when words change places
CONTRAST = (0.5, 1.6)  # of samples, relative to the data's
LEVELS = 8
ROWS = 16  # images at a time


def of_data(low: float, high: float, num: int) -> Symptom:
    """Whether images use the range that the model is told of.

    Args:
        low, high: the darkest and the lightest value of them.
        num: how many.
    """
    told = f"{num:,} images lie in [{low:.2f}, {high:.2f}] (expected: [-1, 1], and below {DARKEST} somewhere)"
    if not -1.001 <= low <= high <= 1.001:
        return Symptom("data out of range", told, "bring images to [-1, 1] in the source: lab.images.from_uint8 does")
    remedy = (
        "black is nowhere: if pictures were scaled to [0, 1], or saved so, load them anew with lab.images.from_uint8; "
        "if they are all bright, nothing is wrong"
    )
    return Symptom("data out of range", told, remedy if low > DARKEST else "")


def of_latents(stage: DiffusionStage, batch: Batch) -> Symptom | None:
    """Whether a codec's latents have unit scale in every channel."""
    if stage.codec.factor == 1:
        return None
    drawn = latents(stage.codec, batch).float()
    means, stds = drawn.mean(dim=(0, 2, 3)), drawn.std(dim=(0, 2, 3))
    told = (
        f"channels of the latent have means up to {means.abs().max():.2f} (limit {CENTRE}) and deviations from "
        f"{stds.min():.2f} to {stds.max():.2f} (limits {SCALE[0]} and {SCALE[1]})"
    )
    is_in_order = means.abs().max() <= CENTRE and SCALE[0] <= stds.min() and stds.max() <= SCALE[1]
    remedy = (
        "noise levels are not what the schedule says, for the scale was measured on other pictures: train the "
        "autoencoder on this data (stage.codec.kind=autoencoder measures its own), and start again with it"
    )
    return Symptom("latents off scale", told, "" if is_in_order else remedy)


def of_settings(stage: DiffusionStage) -> list[Symptom]:
    """Whether sampling begins where training ended, and whether guidance has something to lead away from."""
    config, signal = stage.config, stage.findings()["alpha_at_1"]
    told = f"{signal:.3f} of the signal is left at t = 1 (limit {SIGNAL_WARNED})"
    remedy = f"pure noise is not what training ended in, so brightness is off; in stage: {more_noise(config.schedule)}"
    found = [Symptom("signal at the last step", told, remedy if signal > SIGNAL_WARNED else "")]
    drop, guidance = config.caption_drop, config.sampling.guidance
    told = f"{drop:.0%} of captions are dropped in training (limit {DROP:.0%}), and guidance is {guidance:g}"
    remedy = ""
    if drop == 0 and guidance != 1:
        remedy = "the null condition was never trained: take --guidance 1, or train with stage.caption_drop=0.1"
    elif drop > DROP:
        remedy = "captions are hardly learned: lower stage.caption_drop to 0.1"
    return [*found, Symptom("null condition", told, remedy)]


@torch.no_grad()
def of_average(stage: DiffusionStage, averaged: nn.Module, raw: nn.Module, batch: Batch) -> Symptom:
    """Whether the average of the weights is as good as the weights."""
    whole, own = (_losses(stage, model, batch).mean().item() for model in (averaged, raw))
    told = f"the average's loss is {whole:.3g}, that of the weights themselves {own:.3g} (limit {LAG:g} times)"
    remedy = (
        "the average still remembers the beginning: train longer, sample with --weights raw, or set a shorter train.ema"
    )
    return Symptom("the average lags", told, "" if whole <= LAG * own else remedy)


@torch.no_grad()
def of_text(stage: DiffusionStage, model: nn.Module, batch: Batch) -> list[Symptom]:
    """Whether the right caption helps, and whether the order of its words is heard; nothing where all are alike."""
    if len(set(batch.captions)) == 1:
        return []
    turned = tuple(batch.captions[1:] + batch.captions[:1])
    others = Batch(batch.images, turned, batch.slots, batch.ids, batch.seed)
    gain = (_losses(stage, model, others) - _losses(stage, model, batch)).mean(dim=1)
    if num := int((~gain.isfinite()).sum()):
        told, remedy = f"the losses of {num} of {len(gain)} images are not finite", "go back to an earlier checkpoint"
        return [Symptom("deaf to text", told, f"the weights are broken: {remedy}, or see the other findings")]
    found = mean(gain.tolist())
    told = f"another picture's caption raises the loss by {found.value:.2g} (95 %: {found.low:.2g} to {found.high:.2g})"
    remedy = (
        "the model does not hear its text: look at the captions (scripts/prepare.py doctor), stage.unet.attention and "
        "stage.caption_drop, or train longer"
    )
    symptoms = [Symptom("deaf to text", told, "" if found.low > 0 else remedy)]
    captions = [text for text in batch.captions if len(set(text.split())) > 2][:ROWS]
    if not captions:
        return symptoms
    moved = _moved(stage, model, captions)
    told = f"the answer moves by {moved:.2%} when the words of a caption change places (limit {FAINT:.1%})"
    remedy = "word order is not heard: a text encoder with positions is needed, or longer training of this one"
    return [*symptoms, Symptom("deaf to word order", told, "" if moved >= FAINT else remedy)]


def _losses(stage: DiffusionStage, model: nn.Module, batch: Batch) -> Tensor:
    """The losses (b, LEVELS) on the fixed grid, a few images at a time."""
    rows = [stage.losses_by_level(model, few, LEVELS).cpu() for few in batch.split(ROWS)]
    return torch.cat(rows).double()


def _moved(stage: DiffusionStage, model: nn.Module, captions: Sequence[str]) -> float:
    """How far, relative to its size, x0_hat at pure noise moves when words are shuffled."""
    pipeline = stage.pipeline(model)
    side = pipeline.size // pipeline.codec.factor
    shape = (len(captions), pipeline.codec.channels, side, side)
    noise = torch.from_numpy(key(0, "order", 0).standard_normal(shape, dtype=np.float32))
    x = pipeline.runtime.batch(noise)
    t = torch.full(shape[:1], 0.999, device=x.device)
    answers = []
    for texts in (captions, [_shuffled(text, k) for k, text in enumerate(captions)]):
        with pipeline.runtime.autocast():
            answers.append(pipeline.model.denoiser(x, t, pipeline.model.encode(texts)).float())
    return float(((answers[0] - answers[1]).square().mean() / answers[0].square().mean()).sqrt())


def _shuffled(text: str, number: int) -> str:
    """The same words in another order."""
    words, generator = text.split(), key(0, "shuffle", number)
    while (mixed := [words[k] for k in generator.permutation(len(words))]) == words:
        continue
    return " ".join(mixed)


def of_samples(stage: DiffusionStage, model: nn.Module, batch: Batch, sampling: SamplingConfig) -> Symptom:
    """Whether samples have the contrast of pictures: grey ones have too little, burnt ones too much."""
    requests = [Request(caption, number) for number, caption in enumerate(batch.captions[: 2 * ROWS])]
    drawn = torch.cat(list(stage.pipeline(model).draw(requests, 0, sampling))).clamp(-1, 1)
    ratio = (drawn.std() / batch.images.float().std()).item()
    told = f"samples have {ratio:.2f} of the data's contrast (limits {CONTRAST[0]} and {CONTRAST[1]})"
    if CONTRAST[0] <= ratio <= CONTRAST[1]:
        return Symptom("contrast of samples", told)
    if ratio > CONTRAST[1]:
        return Symptom("contrast of samples", told, "they are burnt: lower guidance, or take more steps")
    remedy = "they are grey: train longer, raise guidance, or see the other findings; try --weights raw"
    return Symptom("contrast of samples", told, remedy)
