"""Several methods over the same pictures, each output beside what it is to be."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lab.evaluation.intervals import mean
from lab.evaluation.pairs import UNITS, Values, figures
from lab.images import from_uint8, to_uint8

CHUNK = 8  # pictures per pass

Images = Callable[[Tensor], Tensor]
Measure = Callable[[Tensor, Tensor, Tensor], Values]  # (output, wanted, given) -> measure -> (b,)
Poll = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """What a method made of some pictures.

    Attributes:
        images: (n, 3, H, W) uint8.
        values: of each measure, one per picture.
        seconds: per picture, of this machine at this time.
    """

    images: Tensor
    values: Values
    seconds: float

    def figures(self) -> dict[str, Any]:
        """Give the mean of each measure with its interval, as JSON values."""
        return {name: asdict(figure) for name, figure in figures([self.values]).items()}

    def above(self, other: "Outcome") -> dict[str, Any]:
        """Give the mean differences to another outcome over the same pictures, as JSON values."""
        pairs = {name: (values, other.values[name]) for name, values in self.values.items()}
        return {name: asdict(mean((a - b).tolist(), UNITS.get(name, ""))) for name, (a, b) in pairs.items()}


def outcome(name: str, method: Images, wanted: Tensor, given: Images, measure: Measure, poll: Poll) -> Outcome:
    """Let a method make pictures and measure them.

    Args:
        name: for the progress bar.
        method: what is given -> images (b, 3, H, W).
        wanted: (n, 3, H, W) uint8.
        given: wanted images (b, 3, H, W) in [-1, 1] -> what the method is given.
        measure: compares output, wanted and given.
        poll: called between chunks.
    """
    made, parts, seconds = [], [], 0.0
    for images in chunks(wanted, name, poll):
        start = given(images)
        begin = time.perf_counter()
        output = method(start)
        seconds += time.perf_counter() - begin
        made.append(to_uint8(output))
        parts.append(measure(output, images, start))
    values = {measured: torch.cat([part[measured] for part in parts]) for measured in parts[0]}
    return Outcome(torch.cat(made), values, seconds / len(wanted))


def chunks(pictures: Tensor, name: str, poll: Poll) -> Iterator[Tensor]:
    """Give (n, 3, H, W) bytes as images of a few at a time, with a progress bar."""
    with tqdm(total=len(pictures), desc=name, unit="picture", disable=None) as bar:
        for few in pictures.split(CHUNK):
            poll()
            yield from_uint8(few)
            bar.update(len(few))


def table(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lay figures out, a line per method: mean and half of the width of the 95 % interval."""
    names = [name for name, figure in next(iter(methods.values())).items() if "value" in figure]
    titles = {name: name.replace("perceptual_distance", "distance").replace("efficientnet-", "") for name in names}
    widths = {name: max(len(title), 16) for name, title in titles.items()}
    rows = [" " * 20 + "".join(f"{titles[name]:>{widths[name] + 2}}" for name in names)]
    for method, measured in methods.items():
        cells = (
            f"{f['value']:.4g} ± {(f['high'] - f['low']) / 2:.2g}".rjust(widths[n] + 2) for n, f in _of(measured, names)
        )
        rows.append(f"{method:<20}" + "".join(cells))
    return rows


def _of(measured: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    return ((name, measured[name]) for name in names)
