"""Does this installation compute the figures that it should? Fixed inputs, stored figures, and other people's code.

Features are normal numbers of a seed, so the arithmetic is checked without any weights; where EfficientNet-Lite0 is
installed, so is its distance between two sets of drawn pictures. What is stored was measured by this module. Where
torch-fidelity, clean-fid or torchmetrics are installed, theirs of the same features stand beside ours.
"""

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.data.shapes import Shapes, ShapesConfig
from lab.errors import Refused
from lab.evaluation.distances import distances
from lab.evaluation.features import EfficientNetLite0, extract
from lab.evaluation.figure import CLIP
from lab.evaluation.kernel_distances import cmmd
from lab.evaluation.likeness import likeness
from lab.images import to_uint8
from lab.randomness import normal

STORED = Path(__file__).with_suffix(".json")
N, D = 300, 16
PICTURES = 24


@dataclass(frozen=True)
class Check:
    """One figure beside what it should be.

    Attributes:
        name: of the figure.
        against: whose figure it should be.
        ours, theirs: both values.
        relative, absolute: the tolerances, either of which is enough.
    """

    name: str
    against: str
    ours: float
    theirs: float
    relative: float = 1e-6
    absolute: float = 1e-9

    @property
    def is_met(self) -> bool:
        """Whether both agree."""
        return abs(self.ours - self.theirs) <= max(self.absolute, self.relative * abs(self.theirs))


def inputs() -> tuple[Tensor, Tensor]:
    """Give the features of two sets, (N, D) each."""
    a, b = (normal(0, f"selftest {name}", range(N), (D,)).double() for name in "ab")
    return a, 1.2 * b + 0.1


def measured() -> dict[str, float]:
    """Measure all figures of the fixed inputs, both ends of their intervals too.

    Raises:
        Refused: torch-fidelity is not installed.
    """
    a, b = inputs()
    sections = likeness(("distances", "precision_recall", "diversity", "cmmd"), a, b, "features")
    figures = [figure for section in sections.values() for figure in section] + [cmmd(a, b, CLIP)]
    if pictures := _of_pictures():
        figures += distances(*pictures, EfficientNetLite0.name)
    return {
        f"{figure.name}{part}": value
        for figure in figures
        for part, value in (("", figure.value), (", low", figure.low), (", high", figure.high))
    }


def _of_pictures() -> tuple[Tensor, Tensor] | None:
    """Features of drawn pictures and of darker ones, where the network is installed."""
    try:
        extractor = EfficientNetLite0()
    except Refused:
        return None
    world = Shapes(ShapesConfig(size=32))
    drawn = to_uint8(torch.stack([world.sample(0, slot).image for slot in range(2 * PICTURES)]))
    return extract([drawn[:PICTURES]], extractor), extract([drawn[PICTURES:] // 2], extractor)


def checks() -> list[Check]:
    """Compare with what is stored and with the libraries that are installed.

    Raises:
        Refused: torch-fidelity is not installed.
    """
    ours = measured()
    stored: dict[str, float] = json.loads(STORED.read_text(encoding="utf-8"))
    found = [
        # what a network sees is rounded otherwise on other machines
        Check(name, "stored", value, stored[name], relative=1e-3 if EfficientNetLite0.name in name else 1e-6)
        for name, value in ours.items()
    ]
    for library, name, other in _others(*inputs()):
        found.append(Check(name, library, ours[name], other, absolute=1e-4))
    return found


def _others(a: Tensor, b: Tensor) -> Iterator[tuple[str, str, float]]:
    """Figures of other libraries: (library, figure, value)."""
    names = {name: f"{name} (features)" for name in ("frechet_distance", "kernel_distance", "precision", "recall")}
    for library, module, measure in OTHERS:
        try:
            package = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, about their own dependencies
            for name, value in measure(package, a, b).items():
                yield library, names[name], value


def _torch_fidelity(package: Any, a: Tensor, b: Tensor) -> dict[str, float]:
    fid, kid, prc = (importlib.import_module(f"{package.__name__}.metric_{name}") for name in ("fid", "kid", "prc"))
    statistics = [fid.fid_features_to_statistics(x) for x in (a, b)]
    shares = prc.prc_features_to_metric(a, b, verbose=False)
    distance = kid.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=N, verbose=False)
    return {
        "frechet_distance": fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID],
        "kernel_distance": distance[kid.KEY_METRIC_KID_MEAN],
        "precision": shares["precision"],
        "recall": shares["recall"],
    }


def _clean_fid(package: Any, a: Tensor, b: Tensor) -> dict[str, float]:
    moments = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy())]
    return {"frechet_distance": float(package.frechet_distance(*moments[0], *moments[1]))}


def _torchmetrics(package: Any, a: Tensor, b: Tensor) -> dict[str, float]:
    (first, cov_first), (second, cov_second) = ((x.mean(dim=0), torch.cov(x.T)) for x in (a, b))
    return {"frechet_distance": float(package._compute_fid(first, cov_first, second, cov_second))}


OTHERS: tuple[tuple[str, str, Callable[[Any, Tensor, Tensor], dict[str, float]]], ...] = (
    ("torch-fidelity", "torch_fidelity", _torch_fidelity),
    ("clean-fid", "cleanfid.fid", _clean_fid),
    ("torchmetrics", "torchmetrics.image.fid", _torchmetrics),
)
