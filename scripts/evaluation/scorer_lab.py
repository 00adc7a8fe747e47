"""The figures of a scorer's run: whether it finds the text of a held-out picture, and the picture of a text.

Among those of 49 others, drawn at random from those that do not fit as well; and on the Shapes among 15 that are nearly
right: each differs from the right one in one thing and is false (``lab.data.shapes_near``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lab.data.shapes import Shapes, ShapesConfig
from lab.data.shapes_captions import parse
from lab.data.shapes_near import KINDS, near_misses
from lab.data.shapes_render import render
from lab.data.shapes_scene import Scene, Statement, draw
from lab.data.sources import AnyData
from lab.evaluation.prompt_accuracy import compare
from lab.evaluation.retrieval import first_among, proportion, stands_out, strangers
from lab.images import from_uint8, grid
from lab.randomness import key
from lab.scorer.judge import Judge
from scripts.assembly import assemble
from scripts.assembly.saved import Saved
from scripts.evaluation import heldout
from scripts.evaluation.heldout import Pictures
from scripts.evaluation.paired import Poll
from scripts.selection import judges

AMONG, NEARLY = 50, 16  # the right one included
SHOWN = 12  # mistakes on a sheet

Sheets = dict[str, Image.Image]


class Near(NamedTuple):
    """What is nearly right for one picture and its caption, and how it scores.

    Attributes:
        kinds: what is wrong with each caption.
        captions: that are nearly right.
        texts: (k,), the scores of these captions with the picture.
        images: (k,), the scores of pictures of what they state with the right caption.
    """

    kinds: tuple[str, ...]
    captions: tuple[str, ...]
    texts: Tensor
    images: Tensor


def everything(found: Saved, num: int, poll: Poll, *, with_networks: bool) -> tuple[dict[str, Any], Sheets]:
    """Measure a scorer.

    Args:
        found: its weights.
        num: held-out pictures, if there are as many.
        poll: called between pictures.
        with_networks: nothing hangs on it: a scorer is measured by itself.

    Returns:
        JSON values, the same for the same checkpoint and machine, and sheets by name.

    Raises:
        Refused: the run trains no scorer, or there are too few pictures.
    """
    judge, data = judges.trained(found), found.experiment.data
    pictures = heldout.pictures(data, "heldout", num, least=AMONG)
    others = strangers(len(pictures), AMONG - 1, heldout.SEED, _fits(data, pictures))
    images, texts = judge.images(from_uint8(pictures.images)), judge.texts(pictures.captions)
    figures: dict[str, Any] = {
        "origin": dict(found.origin),
        "pictures": pictures.facts,
        "cut_captions": judge.model.cut(pictures.captions),
        f"first_of_{AMONG}": {
            "text of the picture": asdict(proportion(first_among(images, texts, others))),
            "picture of the text": asdict(proportion(first_among(texts, images, others))),
        },
    }
    sheets = {f"first-of-{AMONG}": _mistakes(pictures, images @ texts.T, others)}
    if isinstance(data, ShapesConfig):
        own = (images * texts).sum(dim=1)
        near = [
            _near(judge, data, slot, images[slot], texts[slot])
            for slot in tqdm(_polled(len(pictures), poll), total=len(pictures), desc="near misses", unit="picture")
        ]
        figures[f"first_of_{NEARLY}"] = _nearly(own, near)
        sheets[f"first-of-{NEARLY}"] = _near_mistakes(pictures, own, near)
    return figures, sheets


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    rows = ["", f"{'held out':<44}{'found':>7}  {'95 % interval':<15}{'n':>5}"]
    for k, others in ((NEARLY, "near misses"), (AMONG, "other pictures")):
        for way, share in figures.get(f"first_of_{k}", {}).items():
            if way != "told apart":
                what = f"{way}, first of {k} ({others})"
                rows.append(
                    f"{what:<44}{share['value']:>7.3f}  {share['low']:.3f} - {share['high']:.3f}  {share['n']:>5}"
                )
    if apart := figures.get(f"first_of_{NEARLY}", {}).get("told apart"):
        parts = "  ".join(f"{kind} {share['value']:.3f}" for kind, share in apart.items())
        rows.append(f"told from captions in which this is wrong: {parts}")
    if cut := figures["cut_captions"]:
        rows.append(f"captions whose end is not heard: {cut} of {figures['pictures']['num']}")
    return "\n".join(rows)


def _fits(data: AnyData, pictures: Pictures) -> Callable[[int, int], bool]:
    """Whether the text of a picture is true of another: on the Shapes by their scenes, else where both say the same."""
    if isinstance(data, ShapesConfig):
        scenes = [Shapes(data, "heldout").scene(heldout.SEED, slot)[0] for slot in range(len(pictures))]
        statements = [parse(caption) for caption in pictures.captions]
        return lambda item, other: _holds(statements[other], scenes[item])
    meanings = [assemble.language_of(data).meaning(caption) for caption in pictures.captions]
    return lambda item, other: meanings[item] == meanings[other]


def _polled(num: int, poll: Poll) -> Iterator[int]:
    for slot in range(num):
        poll()
        yield slot


def _near(judge: Judge, data: ShapesConfig, slot: int, image: Tensor, text: Tensor) -> Near:
    """Score what is nearly right for a held-out picture, given by its direction (d,), and for its caption."""
    scene, caption = Shapes(data, "heldout").scene(heldout.SEED, slot)
    rng = key(heldout.SEED, "near misses", slot)
    wrong = near_misses(caption, NEARLY - 1, rng, lambda other: not _holds(other, scene))
    captions = tuple(each.caption for each in wrong)
    stated = parse(caption)
    pictures = [torch.from_numpy(render(_scene(each.statement, stated, rng), data.size)) for each in wrong]
    kinds = tuple(each.kind for each in wrong)
    return Near(kinds, captions, judge.texts(captions) @ image, judge.images(torch.stack(pictures)) @ text)


def _holds(statement: Statement, scene: Scene) -> bool:
    return all(compare(scene, statement).values())


def _scene(statement: Statement, other: Statement, rng: np.random.Generator) -> Scene:
    """Draw a scene of which one statement is true and the other is not."""
    while _holds(other, scene := draw(statement, rng)):
        pass
    return scene


def _nearly(own: Tensor, near: Sequence[Near]) -> dict[str, Any]:
    """How often the right one comes first, both ways, and which kinds of near misses it is told from."""
    hits = {
        "text of the picture": stands_out(own, torch.stack([each.texts for each in near])),
        "picture of the text": stands_out(own, torch.stack([each.images for each in near])),
    }
    told: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for right, each in zip(own, near, strict=True):
        for kind, score in zip(each.kinds, each.texts, strict=True):
            told[kind].append(bool(right > score))
    apart = {kind: asdict(proportion(torch.tensor(answers))) for kind, answers in told.items() if answers}
    return {**{way: asdict(proportion(found)) for way, found in hits.items()}, "told apart": apart}


def _mistakes(pictures: Pictures, scores: Tensor, others: Tensor) -> Image.Image:
    """Pictures whose text does not come first, and the text that does."""
    best = scores.gather(1, others).max(dim=1)
    wrong = [
        (item, pictures.captions[int(others[item, best.indices[item]])])
        for item in range(len(pictures))
        if scores[item, item] <= best.values[item]
    ]
    return _sheet(pictures, wrong)


def _near_mistakes(pictures: Pictures, own: Tensor, near: Sequence[Near]) -> Image.Image:
    wrong = [
        (item, each.captions[int(each.texts.argmax())])
        for item, each in enumerate(near)
        if own[item] <= each.texts.max()
    ]
    return _sheet(pictures, wrong)


def _sheet(pictures: Pictures, wrong: Sequence[tuple[int, str]]) -> Image.Image:
    """The first mistakes; where there are none, the first pictures with their texts."""
    shown = wrong[:SHOWN] or [(item, "") for item in range(min(SHOWN, len(pictures)))]
    captions = [f"is: {pictures.captions[item]}" + (f" / taken for: {other}" if other else "") for item, other in shown]
    return grid(from_uint8(pictures.images[[item for item, _ in shown]]), captions, columns=4)
