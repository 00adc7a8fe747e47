"""The figures of a fast decoder's run: what it makes of small pictures, held against the large ones and its input."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lab.evaluation import baselines, perceptual
from lab.evaluation.pairs import Values, compare, hold_to_input
from lab.images import from_uint8, grid, to_uint8
from lab.resampling import bicubic, lanczos
from scripts import enlarging, heldout, paired
from scripts.heldout import Pictures
from scripts.paired import Outcome, Poll
from scripts.saved import Saved
from superres.degrade import degrade
from superres.fast_stage import FastStageConfig

FITTED = 256  # training pictures that the linear filter is fitted on
SHOWN = 6  # pictures on the sheet


def everything(
    found: Saved, num: int, poll: Poll, *, with_networks: bool
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Measure a fast decoder beside bicubic, Lanczos and the best linear filter.

    Args:
        found: its weights.
        num: held-out pictures, if there are as many.
        poll: called between chunks.
        with_networks: whether perceptual distances are measured, which needs pretrained weights.

    Returns:
        JSON values, the same for the same checkpoint and machine except for the seconds, and sheets by name.

    Raises:
        Refused: the run trains nothing that enlarges pictures, or weights are not installed.
    """
    judges = perceptual.judges() if with_networks else {}
    config, model = enlarging.shape(found), enlarging.build(found)
    pictures = heldout.pictures(found.experiment.data, "heldout", num, least=2)
    fitted = heldout.pictures(found.experiment.data, "train", FITTED)
    small, small_fitted = (_small(each, config) for each in (pictures, fitted))
    size = (pictures.images.shape[2], pictures.images.shape[3])
    methods: dict[str, paired.Images] = {
        "fast decoder": model,
        "bicubic": lambda images: bicubic(images, size),
        "lanczos": lambda images: lanczos(images, size),
        "linear filter 7 x 7": baselines.linear_filter(small_fitted, fitted.images),
    }

    def measure(made: Tensor, given: Tensor, wanted: Tensor) -> Values:
        return {**compare(made, wanted, judges), **hold_to_input(made, given)}

    outcomes = {
        name: paired.outcome(name, each, small, pictures.images, measure, poll) for name, each in methods.items()
    }
    best = outcomes["fast decoder"]
    figures = {
        "origin": dict(found.origin),
        "pictures": {**pictures.facts, "degradation": config.degradation.model_dump(mode="json")},
        "methods": {name: made.figures() for name, made in outcomes.items()},
        "above": {name: best.above(made) for name, made in outcomes.items() if made is not best},
        "seconds_per_picture": {name: made.seconds for name, made in outcomes.items()},
    }
    return figures, {"pairs": _sheet(small, outcomes, pictures)}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    rows = ["", *paired.table(figures["methods"]), *paired.gaps(figures["above"])]
    seconds = "  ".join(f"{name} {1000 * each:.1f}" for name, each in figures["seconds_per_picture"].items())
    return "\n".join([*rows, f"milliseconds per picture, this time: {seconds}"])


def _small(pictures: Pictures, config: FastStageConfig) -> Tensor:
    """The small pictures (n, 3, h, w), uint8, that the large ones are to be made from."""
    parts = [
        degrade(
            from_uint8(few), config.decoder.factor, config.degradation, heldout.SEED, range(start, start + len(few))
        )
        for start, few in zip(range(0, len(pictures), paired.CHUNK), pictures.images.split(paired.CHUNK), strict=True)
    ]
    return to_uint8(torch.cat(parts))


def _sheet(small: Tensor, outcomes: Mapping[str, Outcome], pictures: Pictures) -> Image.Image:
    """What was given, as it is; bicubic, the decoder's, and the original."""
    factor = pictures.images.shape[-1] // small.shape[-1]
    given = small[:SHOWN].repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    made = {name: outcomes[name].images[:SHOWN] for name in ("bicubic", "fast decoder")}
    columns = {"given": given, **made, "original": pictures.images[:SHOWN]}
    images = from_uint8(torch.stack(list(columns.values()), dim=1).flatten(0, 1))
    return grid(images, [*columns] * len(given), columns=len(columns))
