"""The figures of a scorer's run: whether it finds the text of a held-out picture, and the picture of a text.

Among those of 49 others, drawn at random; and on the Shapes among 15 that are nearly right: each differs from the right
one in one thing and is false (``lab.evaluation.shapes_negatives``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lab.data.shapes import Shapes, ShapesConfig
from lab.data.shapes_render import render
from lab.evaluation.retrieval import first_among, found, proportion, strangers
from lab.evaluation.shapes_negatives import KINDS, negatives, scene_of
from lab.images import from_uint8, grid
from lab.randomness import key
from lab.scorer.judge import Judge
from scripts import assemble, heldout, judges
from scripts.heldout import Pictures
from scripts.paired import Poll
from scripts.saved import Saved

AMONG, NEARLY = 50, 16  # the right one included
SHOWN = 12  # mistakes on a sheet

Sheets = dict[str, Image.Image]


class Near(NamedTuple):
    """What is nearly right for one picture and its caption: captions, what is wrong with each, and pictures of them."""

    kinds: tuple[str, ...]
    captions: tuple[str, ...]
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
    meanings = [assemble.meaning_of(data)(caption) for caption in pictures.captions]
    others = strangers(meanings, AMONG - 1, heldout.SEED)
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
    sheets = {"mistakes": _mistakes(pictures, images @ texts.T, others)}
    if isinstance(data, ShapesConfig):
        figures[f"first_of_{NEARLY}"], sheets["nearly"] = _nearly(judge, data, pictures, images, texts, poll)
    return figures, sheets
