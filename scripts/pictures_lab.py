"""The figures of a text-to-image run on pictures of somebody's own: likeness, recall, and whether it copies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion.pipeline import Request
from lab.data.sources import AnyData
from lab.evaluation.distances import NUM_GROUPS, distances
from lab.evaluation.features import EfficientNetLite0, extract
from lab.evaluation.intervals import wilson
from lab.evaluation.memorization import LEAST, Memorization, Neighbours, memorization, nearest
from lab.images import from_uint8, grid, to_uint8
from lab.resampling import bicubic
from scripts import heldout
from scripts.heldout import Pictures
from scripts.paired import CHUNK

MOST = 5000  # pictures of a side that samples are compared with
SIDE = 64  # in pixels, at which pictures are compared
SHOWN = 16  # samples of a side, and closest pairs, on a sheet
SIDES = ("train", "heldout")

Draw = Callable[[Sequence[Request], str], Tensor]
Sheets = dict[str, Image.Image]


def everything(data: AnyData, num: int, draw: Draw, *, with_networks: bool) -> tuple[dict[str, Any], Sheets]:
    """Measure pictures drawn for captions that were trained on, and for held-out ones.

    Args:
        data: of the run.
        num: captions of each side, if there are as many.
        draw: gives the pictures of requests, (n, 3, H, W) in [-1, 1].
        with_networks: whether to compare features, which needs pretrained weights, or pixels alone.

    Returns:
        JSON values and sheets by name.

    Raises:
        Refused: nothing, or too little, is held out.
    """
    spaces = _spaces(with_networks)  # first what may not be there
    sides = {"heldout": heldout.pictures(data, "heldout", MOST, least=max(LEAST, NUM_GROUPS))}
    sides["train"] = heldout.pictures(data, "train", MOST)
    samples = {side: to_uint8(draw(_requests(sides[side], num), f"{side} captions")) for side in SIDES}
    figures: dict[str, Any] = {"pictures": {side: sides[side].facts for side in SIDES}}
    figures["spaces"], closest = {}, {}
    for name, describe in spaces.items():
        real = {side: describe(pictures.images) for side, pictures in sides.items()}
        drawn = {side: describe(images) for side, images in samples.items()}
        found, copies, neighbours = _space(sides, real, drawn)
        figures["spaces"][name] = found
        closest[name] = _closest(samples["heldout"], sides, copies, neighbours)
        if name != "pixels":
            made = distances(drawn["heldout"], real["heldout"], name)
            figures["distances"] = [
                {**asdict(figure), "weights_sha256": EfficientNetLite0.weights_sha256} for figure in made
            ]
    sheets = {}
    for side in SIDES:
        shown = samples[side][:SHOWN]
        sheets[side] = grid(from_uint8(shown), sides[side].captions[: len(shown)], columns=8)
    return figures, {**sheets, **{f"closest-{name.split('-')[0]}": sheet for name, sheet in closest.items()}}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    numbers = {side: facts["num"] for side, facts in figures["pictures"].items()}
    rows = ["", f"compared with {numbers['train']:,} pictures to train on and {numbers['heldout']:,} held-out ones"]
    for figure in figures.get("distances", []):
        notes = f"  ({'; '.join(figure['notes'])})" if figure["notes"] else ""
        interval = f"[{figure['low']:.4f}, {figure['high']:.4f}]"
        rows.append(f"{figure['name']}: {figure['value']:.4f}  {interval}  n {figure['n']}{notes}")
    for name, found in figures["spaces"].items():
        for side, shares in found["recalled"].items():
            for kind, share in {
                "caption": shares,
                **{f"{kind} caption": share for kind, share in shares["kinds"].items()},
            }.items():
                rows.append(
                    f"{name}: the nearest {side} picture carries the {kind} that was asked for: {share['value']:.3f}  "
                    f"[{share['low']:.3f}, {share['high']:.3f}]  n {share['n']}, by chance {share['chance']:.4f}"
                )
        rows.append(f"{name}: {found['copies']['verdict']}")
    return "\n".join(rows)


def _requests(pictures: Pictures, num: int) -> list[Request]:
    return [Request(caption, number) for number, caption in enumerate(pictures.captions[:num])]


def _spaces(with_networks: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """What pictures are compared by: (n, 3, H, W) bytes -> (n, d)."""
    spaces: dict[str, Callable[[Tensor], Tensor]] = {"pixels": _thumbnails}
    if with_networks:
        extractor = EfficientNetLite0()
        spaces[extractor.name] = lambda images: extract(images.split(CHUNK), extractor, progress=True)
    return spaces


def _thumbnails(images: Tensor) -> Tensor:
    """The pixels of pictures, of larger ones at ``SIDE``: (n, 3, H, W) bytes -> (n, d)."""
    side = min(SIDE, images.shape[-1])
    return torch.cat([bicubic(from_uint8(few), (side, side)).flatten(1) for few in images.split(CHUNK)])


def _space(
    sides: Mapping[str, Pictures], real: Mapping[str, Tensor], drawn: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Memorization, Neighbours]:
    """Recall on both sides and copies, in one space."""
    recalled = {side: _recall(sides[side], nearest(drawn[side], real[side]).indices.tolist()) for side in SIDES}
    neighbours = nearest(drawn["heldout"], real["train"])
    copies = memorization(neighbours, nearest(real["heldout"], real["train"]), len(real["train"]))
    told = {name: getattr(copies, name) for name in ("share", "low", "high", "n", "heldout", "training", "interval")}
    return {"recalled": recalled, "copies": {**told, "verdict": copies.verdict}}, copies, neighbours


def _recall(pictures: Pictures, found: Sequence[int]) -> dict[str, Any]:
    """Whether the picture found for each of the first captions carries that caption: of all, and of each kind."""
    captions, asked = pictures.captions, range(len(found))
    kinds = sorted({pictures.kinds[k] for k in asked})
    parts = {kind: [k for k in asked if pictures.kinds[k] == kind] for kind in kinds if len(kinds) > 1}

    def share(those: Sequence[int]) -> dict[str, Any]:
        hits, n = sum(captions[found[k]] == captions[k] for k in those), len(those)
        low, high = wilson(hits, n)
        chance = sum(captions.count(captions[k]) for k in those) / n / len(captions)
        return {"value": hits / n, "low": low, "high": high, "n": n, "chance": chance}

    return {**share(asked), "kinds": {kind: share(those) for kind, those in parts.items()}}


def _closest(
    samples: Tensor, sides: Mapping[str, Pictures], copies: Memorization, neighbours: Neighbours
) -> Image.Image:
    """The samples that lie nearest to training pictures, each beside its nearest."""
    order = neighbours.distances.argsort()[:SHOWN].tolist()
    images, captions = [], []
    for sample in order:
        found = int(neighbours.indices[sample])
        images += [samples[sample], sides["train"].images[found]]
        chance = float(copies.probabilities[sample])
        captions += [
            f"asked for: {sides['heldout'].captions[sample]}",
            f"trained on ({chance:.2f} by chance): " + sides["train"].captions[found],
        ]
    return grid(from_uint8(torch.stack(images)), captions, columns=8)
