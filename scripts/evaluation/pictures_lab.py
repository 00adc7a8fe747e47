"""The figures of a text-to-image run on pictures of somebody's own: likeness, recall, and whether it copies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion.pipeline import Request
from lab.data.sources import AnyData
from lab.evaluation.distances import NUM_GROUPS
from lab.evaluation.intervals import wilson
from lab.evaluation.memorization import LEAST, Memorization, Neighbours, memorization, nearest
from lab.images import from_uint8, grid, to_uint8
from lab.resampling import bicubic
from scripts.evaluation import heldout, panel
from scripts.evaluation.heldout import Pictures
from scripts.evaluation.paired import CHUNK, Poll
from scripts.evaluation.panel import Panel

MOST = 5000  # pictures of a side that samples are compared with
SIDE = 64  # in pixels, at which pictures are compared
SHOWN = 16  # samples of a side, and closest pairs, on a sheet
SIDES = ("train", "heldout")
PARTS = {"recalled": "prompt", "copies": "memorization"}  # of what is found in a space, and the metric that asks for it

Draw = Callable[[Sequence[Request], str], Tensor]
Sheets = dict[str, Image.Image]


def everything(
    data: AnyData, num: int, draw: Draw, asked: Panel, kept: Path, poll: Poll
) -> tuple[dict[str, Any], Sheets]:
    """Measure pictures drawn for captions that were trained on, and for held-out ones.

    Args:
        data: of the run.
        num: captions of each side, if there are as many.
        draw: gives the pictures of requests, (n, 3, H, W) in [-1, 1].
        asked: which figures.
        kept: a folder that keeps features of the pictures that are drawn.
        poll: called between passes of a network.

    Returns:
        JSON values and sheets by name.

    Raises:
        Refused: nothing, or too little, is held out.
    """
    sides = {"heldout": heldout.pictures(data, "heldout", MOST, least=max(LEAST, NUM_GROUPS))}
    sides["train"] = heldout.pictures(data, "train", MOST)
    samples = {side: to_uint8(draw(_requests(sides[side], num), f"{side} captions")) for side in SIDES}
    figures: dict[str, Any] = {"pictures": {side: sides[side].facts for side in SIDES}, "spaces": {}}
    made, real = samples["heldout"], sides["heldout"]
    figures |= asked.likeness(made, real.captions[: len(made)], real.images, kept, poll)
    sheets = {}
    for name, describe in _spaces(asked, poll).items():
        features = {side: describe(pictures.images, asked.cache) for side, pictures in sides.items()}
        drawn = {side: describe(images, kept / "features") for side, images in samples.items()}
        found, copies, neighbours = _space(sides, features, drawn)
        figures["spaces"][name] = {part: found[part] for part, metric in PARTS.items() if metric in asked.metrics}
        if "memorization" in asked.metrics:
            sheets[f"closest-{name.split('-')[0]}"] = _closest(made, sides, copies, neighbours)
    for side in SIDES:
        shown = samples[side][:SHOWN]
        sheets[side] = grid(from_uint8(shown), sides[side].captions[: len(shown)], columns=8)
    return figures, sheets


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    numbers = {side: facts["num"] for side, facts in figures["pictures"].items()}
    rows = ["", f"compared with {numbers['train']:,} pictures to train on and {numbers['heldout']:,} held-out ones"]
    rows += panel.rows(figures)
    for name, found in figures["spaces"].items():
        for side, shares in found.get("recalled", {}).items():
            for kind, share in {
                "caption": shares,
                **{f"{kind} caption": share for kind, share in shares["kinds"].items()},
            }.items():
                rows.append(
                    f"{name}: the nearest {side} picture carries the {kind} that was asked for: {share['value']:.3f}  "
                    f"[{share['low']:.3f}, {share['high']:.3f}]  n {share['n']}, by chance {share['chance']:.4f}"
                )
        if "copies" in found:
            rows.append(f"{name}: {found['copies']['verdict']}")
    return "\n".join(rows)


def _requests(pictures: Pictures, num: int) -> list[Request]:
    return [Request(caption, number) for number, caption in enumerate(pictures.captions[:num])]


def _spaces(asked: Panel, poll: Poll) -> dict[str, Callable[[Tensor, Path], Tensor]]:
    """What pictures are compared by: (n, 3, H, W) bytes and a folder of features -> (n, d)."""
    if not asked.metrics.intersection(PARTS.values()):
        return {}
    spaces: dict[str, Callable[[Tensor, Path], Tensor]] = {"pixels": lambda images, _: _thumbnails(images)}
    if extractor := asked.extractors.get("lite0"):
        spaces[extractor.name] = lambda images, folder: asked.described(images, extractor, folder, poll)
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
