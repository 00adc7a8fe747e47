"""What is measured of the pictures of one setting, kept in a JSON file as soon as it is known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.data.shapes import Shapes, ShapesConfig
from lab.errors import BadData
from lab.evaluation.features import EfficientNetLite0, extract
from lab.evaluation.kernel_distances import kernel
from lab.evaluation.prompt_accuracy import accuracy
from lab.images import from_uint8, to_uint8
from lab.storage import write_whole
from scripts.benchmarks.walks import KINDS, Walk, rms
from scripts.interface import gallery

Figures = dict[str, Any]


class Judge:
    """Judges pictures by their prompts, and by their distance to held-out renders of the same kinds.

    Args:
        data: of the run.
        prompts: what the pictures are to show.
        kinds: of each prompt, one of ``KINDS``.
        seed: of the renders.
        with_distances: whether distances are measured, which needs the extra "evaluate".
    """

    def __init__(
        self, data: ShapesConfig, prompts: Sequence[str], kinds: Sequence[str], seed: int, *, with_distances: bool
    ) -> None:
        self.prompts, self.kinds = prompts, kinds
        self.extractor = EfficientNetLite0() if with_distances else None
        if self.extractor is not None:
            world = Shapes(data.model_copy(update={"mixture": dict.fromkeys(KINDS, 1.0)}), split="heldout")
            real = torch.stack([world.sample(seed, slot).image for slot in range(len(prompts))])
            self._real = extract([to_uint8(real)], self.extractor)

    def __call__(self, images: Tensor) -> Figures:
        """Judge pictures (n, 3, H, W), one per prompt, as a PNG would hold them."""
        pictures = to_uint8(images)
        figures: Figures = {"n": len(images), "accuracy": {}}
        for kind in KINDS:
            own = [k for k, other in enumerate(self.kinds) if other == kind]
            shares = accuracy(from_uint8(pictures[own]), [self.prompts[k] for k in own])
            figures["accuracy"][kind] = asdict(shares["right"])
        if self.extractor is not None:
            found = kernel(extract([pictures], self.extractor), self._real, self.extractor.name)
            figures["kernel_distance"] = asdict(found)
        return figures


def cost(walk: Walk, exact: Tensor | None) -> Figures:
    """Give what a walk cost, and its error where there is an exact solution for its first images."""
    figures: Figures = {"calls": walk.calls, "evaluations": walk.evaluations, "seconds": round(walk.seconds, 3)}
    if exact is not None:
        figures |= {"solver_error": rms(walk.images[: len(exact)], exact), "solver_n": len(exact)}
    return figures


class Sheet:
    """Figures by setting in one JSON file, ``<folder>/samplers-<hash of what>.json``.

    Args:
        folder: where it lies.
        what: all that the figures of this file have in common: model, prompts, precision.

    Raises:
        BadData: the file is there and spoilt.
    """

    def __init__(self, folder: Path, what: Mapping[str, object]) -> None:
        self.path = folder / f"samplers-{gallery.digest(what)}.json"
        self.what = what
        self.cells: dict[str, Figures] = {}
        if self.path.exists():
            try:
                self.cells = json.loads(self.path.read_text())["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadData(f"{self.path} holds no figures ({error!r}); move it away") from None

    def get(self, recipe: Mapping[str, object]) -> Figures | None:
        """Give the figures of a setting, if they are there."""
        return self.cells.get(gallery.digest(recipe))

    def keep(self, recipe: Mapping[str, object], figures: Figures) -> None:
        """Keep the figures of a setting, on the disk at once."""
        self.cells[gallery.digest(recipe)] = {"sampling": recipe, **figures}
        write_whole(self.path, (json.dumps({"what": self.what, "cells": self.cells}, indent=1) + "\n").encode())
