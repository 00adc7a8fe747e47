"""Several methods over the same pictures, each output beside what it is to be."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lab.evaluation.distances import frechet
from lab.evaluation.features import EfficientNetLite0, extract
from lab.evaluation.intervals import mean
from lab.evaluation.kernel_distances import kernel
from lab.evaluation.pairs import UNITS, Values, figures
from lab.images import from_uint8, to_uint8

CHUNK = 8  # pictures per pass

Images = Callable[[Tensor], Tensor]
Measure = Callable[[Tensor, Tensor, Tensor], Values]  # (output, given, wanted) -> name of the measure -> (b,)
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


def outcome(name: str, method: Images, given: Tensor, wanted: Tensor, measure: Measure, poll: Poll) -> Outcome:
    """Let a method make pictures and measure them.

    Args:
        name: for the progress bar.
        method: images (b, 3, h, w) -> images (b, 3, H, W) on the CPU.
        given: (n, 3, h, w) uint8.
        wanted: (n, 3, H, W) uint8.
        measure: compares.
        poll: called between chunks.
    """
    made, parts, seconds = [], [], 0.0
    for start, end in zip(chunks(given, name, poll), wanted.split(CHUNK), strict=True):
        begin = time.perf_counter()
        output = method(start)
        seconds += time.perf_counter() - begin
        made.append(to_uint8(output))
        parts.append(measure(output, start, from_uint8(end)))
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
    """Lay figures out, a line per method: the mean and half the width of its 95 % interval."""
    names = list(next(iter(methods.values())))
    titles = [name.replace("perceptual_distance", "distance").replace("efficientnet-", "") for name in names]
    widths = [max(len(title), 16) for title in titles]
    rows = [
        ["", *titles],
        *([method, *(_cell(measured[name]) for name in names)] for method, measured in methods.items()),
    ]
    return [
        f"{row[0]:<20}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    ]


def _cell(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.4g} ± {(figure['high'] - figure['low']) / 2:.2g}"


def distances(
    made: Mapping[str, Tensor], wanted: Tensor, extractor: EfficientNetLite0, notes: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Measure how far the set of each method's pictures lies from those that they were to be, as JSON values.

    The Frechet distance is that of all pairs; the kernel distance, whose two sets must be independent, that of every
    other picture that was made to the others that were wanted.

    Args:
        made: of each method, (n, 3, H, W) uint8.
        wanted: (n, 3, H, W) uint8.
        extractor: gives the features.
        notes: further ones on each figure.
    """
    second = extract(wanted.split(CHUNK), extractor, progress=True)
    provenance = {"weights_sha256": extractor.weights_sha256, "resize": extractor.resize}
    found = {}
    for name, images in made.items():
        first = extract(images.split(CHUNK), extractor, progress=True)
        both = frechet(first, second, extractor.name), kernel(first[::2], second[1::2], extractor.name)
        found[name] = [{**asdict(figure), "notes": [*figure.notes, *notes], **provenance} for figure in both]
    return found


def told(name: str, distances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how far a method's set of pictures lies from what was wanted."""
    lines = []
    for figure in distances:
        notes = f"  ({'; '.join(figure['notes'])})" if figure["notes"] else ""
        interval = f"[{figure['low']:.4f}, {figure['high']:.4f}]"
        lines.append(f"{name}, {figure['name']}: {figure['value']:.4f}  {interval}  n {figure['n']}{notes}")
    return lines


def gaps(above: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say by how many dB the model is above each of the others, over the same pictures."""
    psnr = {name: measured["psnr"] for name, measured in above.items()}
    return [f"above the {name}: {f['value']:+.2f} dB [{f['low']:+.2f}, {f['high']:+.2f}]" for name, f in psnr.items()]
