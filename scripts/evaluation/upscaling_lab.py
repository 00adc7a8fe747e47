"""The figures of what enlarges pictures: what it makes of small ones, held against the large ones and its input."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion.pipeline import Request
from lab.evaluation import baselines, perceptual
from lab.evaluation.distances import NUM_GROUPS
from lab.evaluation.features import EfficientNetLite0
from lab.evaluation.pairs import Values, compare, hold_to_input
from lab.images import from_uint8, grid, to_uint8
from lab.resampling import bicubic, lanczos
from scripts.assembly import enlarging
from scripts.assembly.saved import Saved
from scripts.evaluation import heldout, paired
from scripts.evaluation.heldout import Pictures
from scripts.evaluation.paired import Outcome, Poll
from superres.cascade_pipeline import CascadePipeline, EnlargingConfig, back_projected
from superres.cascade_stage import CascadeConfig
from superres.degrade import AnyDegradation, degrade
from superres.fast_stage import FastStageConfig

FITTED = 256  # training pictures that the linear filter is fitted on
SHOWN = 6  # pictures on the sheet
PROJECTED = 8  # times that a cascade's result is brought back to its input, where its run names none

Methods = dict[str, paired.Images]


def everything(
    found: Saved, num: int, poll: Poll, *, with_networks: bool
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Measure a fast decoder or a cascade beside bicubic, Lanczos and the best linear filter.

    Args:
        found: its weights, and how it draws.
        num: held-out pictures, if there are as many.
        poll: called between chunks.
        with_networks: whether perceptual, kernel and Frechet distances are measured, which needs pretrained weights.

    Returns:
        JSON values, the same for the same checkpoint and machine except for the seconds, and sheets by name.

    Raises:
        Refused: the run trains nothing that enlarges pictures, or weights are not installed.
    """
    judges = perceptual.judges() if with_networks else {}
    extractor = EfficientNetLite0() if with_networks else None
    config = enlarging.shape(found)
    pictures = heldout.pictures(found.experiment.data, "heldout", num, least=NUM_GROUPS if with_networks else 2)
    fitted = heldout.pictures(found.experiment.data, "train", FITTED)
    factor = config.factor if isinstance(config, CascadeConfig) else config.decoder.factor
    small, small_fitted = (_small(each, factor, config.degradation) for each in (pictures, fitted))
    size = (pictures.images.shape[2], pictures.images.shape[3])
    methods: Methods = {
        **_subject(found, pictures, poll),
        "bicubic": lambda images: bicubic(images, size),
        "lanczos": lambda images: lanczos(images, size),
        "linear filter 7 x 7": baselines.linear_filter(small_fitted, fitted.images),
    }

    def measure(made: Tensor, given: Tensor, wanted: Tensor) -> Values:
        return {**compare(made, wanted, judges), **hold_to_input(made, given)}

    outcomes = {
        name: paired.outcome(name, each, small, pictures.images, measure, poll) for name, each in methods.items()
    }
    own = _own(config, outcomes)
    figures = {
        "origin": dict(found.origin),
        "settings": enlarging.told(found),
        **({"times_back_projected": _times(config.enlarging)} if isinstance(config, CascadeConfig) else {}),
        "pictures": {**pictures.facts, "degradation": config.degradation.model_dump(mode="json")},
        "methods": {name: made.figures() for name, made in outcomes.items()},
        "above": {name: outcomes[own].above(made) for name, made in outcomes.items() if name != own},
        "seconds_per_picture": {name: made.seconds for name, made in outcomes.items()},
    }
    if extractor is not None:
        made = {name: each.images for name, each in outcomes.items()}
        figures["distances"] = paired.distances(made, pictures.images, extractor)
    return figures, {"pairs": _sheet(small, outcomes, own, pictures)}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    rows = ["", *paired.table(figures["methods"]), *paired.gaps(figures["above"])]
    for name, found in figures.get("distances", {}).items():
        rows += paired.told(name, found)
    seconds = "  ".join(f"{name} {1000 * each:.1f}" for name, each in figures["seconds_per_picture"].items())
    return "\n".join([*rows, f"milliseconds per picture, this time: {seconds}"])


def _subject(found: Saved, pictures: Pictures, poll: Poll) -> Methods:
    """What is measured: a fast decoder; or a cascade, and what it has drawn after it was brought back to its input."""
    if not isinstance(enlarging.shape(found), CascadeConfig):
        return {"fast decoder": enlarging.build(found)}
    return _drawing(enlarging.cascade(found), pictures, poll)


def _drawing(cascade: CascadePipeline, pictures: Pictures, poll: Poll) -> Methods:
    """The methods of a cascade, the second of which takes up what the first has left; its time is its own alone."""
    free = replace(cascade, enlarging=cascade.enlarging.model_copy(update={"back_projection": 0}))
    times = _times(cascade.enlarging)
    requests = (Request(caption, number) for number, caption in enumerate(pictures.captions))
    drawn: list[Tensor] = []

    def draw(small: Tensor) -> Tensor:
        drawn.append(free(small, list(islice(requests, len(small))), heldout.SEED, poll))
        return drawn[-1]

    return {"cascade": draw, "back-projected": lambda small: back_projected(drawn.pop(0), small, times)}


def _times(enlarging: EnlargingConfig) -> int:
    return enlarging.back_projection or PROJECTED


def _small(pictures: Pictures, factor: int, degradation: AnyDegradation) -> Tensor:
    """The small pictures (n, 3, h, w), uint8, that the large ones are to be made from."""
    parts = [
        degrade(from_uint8(few), factor, degradation, heldout.SEED, range(start, start + len(few)))
        for start, few in zip(range(0, len(pictures), paired.CHUNK), pictures.images.split(paired.CHUNK), strict=True)
    ]
    return to_uint8(torch.cat(parts))


def _own(config: FastStageConfig | CascadeConfig, outcomes: Mapping[str, Outcome]) -> str:
    """Which of the outcomes is what the run makes, as it is set."""
    projects = isinstance(config, CascadeConfig) and config.enlarging.back_projection > 0
    return "back-projected" if projects else next(iter(outcomes))


def _sheet(small: Tensor, outcomes: Mapping[str, Outcome], own: str, pictures: Pictures) -> Image.Image:
    """What was given, as it is; bicubic, what the run makes of it, and the original."""
    factor = pictures.images.shape[-1] // small.shape[-1]
    given = small[:SHOWN].repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    made = {name: outcomes[name].images[:SHOWN] for name in ("bicubic", own)}
    columns = {"given": given, **made, "original": pictures.images[:SHOWN]}
    images = from_uint8(torch.stack(list(columns.values()), dim=1).flatten(0, 1))
    return grid(images, [*columns] * len(given), columns=len(columns))
