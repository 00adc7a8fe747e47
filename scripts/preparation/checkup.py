"""The doctor's visit: what is looked at, and how it is told in words, lines and pictures."""

import io
import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import nn

from lab import runtime as runtimes
from lab.data import doctor, pictures
from lab.data.buckets import listed
from lab.data.collection import Collection
from lab.data.doctor import Finding, Report
from lab.data.index import Index, open_index
from lab.data.mixture import MixtureConfig
from lab.data.source import BadSample
from lab.data.sources import AnyData, source
from lab.errors import Refused
from lab.images import grid
from lab.storage import write_whole
from lab.text import selection
from lab.text.encoder import TextEncoder
from scripts.assembly.experiments import AnyExperiment

TOLD = 10  # findings of each kind that are written out in report.md
SHOWN = 4  # findings of each kind on the sheet
TILE = 96  # pixels
MEANINGS: dict[doctor.Kind, str] = {
    "broken": "cannot be used; runs leave them out",
    "leak": "alike, and on both sides of the split: held-out figures would be too good",
    "duplicate": "the same pixels under several names",
    "near": "nearly the same picture",
    "empty": "a caption without a word",
    "repeated": "one caption of several images",
    "long": "the text encoder cuts them",
    "small": "smaller than what the model sees, so enlarged",
    "blank": "one colour all over",
}
assert set(MEANINGS) == set(get_args(doctor.Kind))


def parts_of(data: AnyData) -> dict[str, AnyData]:
    """Give what a mixture consists of, by name; anything else is its own only part."""
    return dict(data.parts) if isinstance(data, MixtureConfig) else {data.kind: data}


def encoder(experiment: AnyExperiment) -> TextEncoder:
    """Build the text encoder of an experiment, with fresh weights where it is one that a run would train.

    Raises:
        Refused: pretrained weights are nowhere to be found.
    """
    runtime = runtimes.start(experiment.runtime.model_copy(update={"precision": "fp32", "channels_last": False}))
    captions = source(experiment.data).captions
    text = selection.complete(experiment.text, None, captions, experiment.runtime.allow_download)
    return selection.build(text, runtime)


def examine(data: AnyData, num: int, encoder: TextEncoder) -> Report:
    """Look at a data set: all of it, or the first ``num`` samples of each side of one that is endless or elsewhere.

    Args:
        data: which; no mixture.
        num: for a world without an end, or remote shards.
        encoder: says how long captions are.

    Raises:
        Refused, BadData, StorageFailed: as from ``lab.data.sources.source``.
    """
    if isinstance(data, Collection):
        return doctor.examine(doctor.look(data, open_index(data)), data.shapes, encoder.count, encoder.context)
    seen = list(doctor.look_at_slots(source(data), "train", 0, num))
    with suppress(Refused):  # nothing is held out
        seen += doctor.look_at_slots(source(data, "heldout"), "heldout", 0, num)
    return doctor.examine(seen, [(data.size, data.size)], encoder.count, encoder.context, finite=False)


def fill(data: AnyData, encoder: TextEncoder) -> str:
    """Put every caption of both sides, and the empty one, into the caches of frozen text encoders; say what was done.

    Raises:
        NonFinite, StorageFailed: as from ``lab.text.frozen.Encodings.fill``.
    """
    assert isinstance(encoder, nn.Module)
    if not (frozen := selection.frozen(encoder)):
        return "text encoder: trained with the model, so there is nothing to compute ahead"
    captions = {"", *source(data).captions()}
    with suppress(Refused):  # nothing is held out
        captions.update(source(data, "heldout").captions())
    lines = []
    for text in frozen:
        if text.encodings.cache is None:
            lines.append("text cache: none, since text.cache is null")
            continue
        added = text.encodings.fill(captions)
        lines.append(f"text cache: {len(captions):,} captions, {added:,} of them new, in {text.encodings.cache.folder}")
    return "\n".join(lines)


def write(report: Report, data: AnyData, out: Path) -> str:
    """Write report.md, findings.jsonl and sheet.png; give the report's text.

    Raises:
        StorageFailed: the disk is full or refuses.
    """
    text = tell(report, data)
    write_whole(out / "report.md", text.encode())
    lines = [json.dumps(asdict(finding), ensure_ascii=False) for finding in report.findings]
    write_whole(out / "findings.jsonl", "".join(f"{line}\n" for line in lines).encode())
    picture = io.BytesIO()
    sheet(report, data).save(picture, "PNG")
    write_whole(out / "sheet.png", picture.getvalue())
    return f"{text}\n{out}: report.md, findings.jsonl ({len(report.findings)} lines) and sheet.png"


def tell(report: Report, data: AnyData) -> str:
    """Put a report into words."""
    train, heldout = report.samples["train"], report.samples["heldout"]
    num, different = report.captions
    lines = [
        f"# {getattr(data, 'path', data.kind)}",
        "",
        f"{train + heldout:,} samples: {train:,} to train on, {heldout:,} held out.",
        f"{num:,} captions, {different:,} of them different; {report.alike:,} samples resemble another.",
    ]
    if report.lengths:
        low, middle, high = np.percentile(report.lengths, [5, 50, 95]).astype(int)
        cut = len(report.of("long"))
        lines.append(
            f"Tokens of a caption: {middle} in the middle, {low} to {high} for nine of ten, at most "
            f"{report.lengths[-1]}. The text encoder hears {report.window} and cuts {cut:,} captions."
        )
    if len(report.sizes):
        sides = report.sizes.min(axis=1)
        low, middle, high = np.percentile(sides, [5, 50, 95]).astype(int)
        lines.append(
            f"Shorter side in pixels: {middle} in the middle, {low} to {high} for nine of ten; wanted {data.size}."
        )
    if len(report.shapes) > 1:
        lines.append(f"Trained on as: {listed(report.shapes)}.")
    lines += ["", "| finding | number | meaning |", "|---|---|---|"]
    counts = Counter(finding.kind for finding in report.findings)
    lines += [f"| {kind} | {counts[kind]:,} | {meaning} |" for kind, meaning in MEANINGS.items()]
    for reason, number in Counter(f.detail.split(" (")[0] for f in report.of("broken")).most_common():
        lines += ["", f"Broken: {reason}: {number:,}."]
    for kind in MEANINGS:
        found = report.of(kind)
        lines += ["", f"## {kind}", ""] if found else []
        lines += [f"- {_named(finding)}" for finding in found[:TOLD]]
        lines += [f"- and {len(found) - TOLD:,} more, in findings.jsonl"] if len(found) > TOLD else []
    return "\n".join(lines) + "\n"


def sheet(report: Report, data: AnyData) -> Image.Image:
    """Draw eight samples as a model sees them, then the pictures of some findings of each kind."""
    ordinary = source(data)
    samples = [ordinary.sample(0, slot) for slot in range(8)]
    tiles = [sample.image for sample in samples]
    captions = [sample.caption for sample in samples]
    if isinstance(data, Collection):
        wanted = [
            (finding.kind, id) for kind in MEANINGS for finding in report.of(kind)[:SHOWN] for id in finding.ids[:2]
        ]
        index = open_index(data)
        rows = _rows(index, {id for _, id in wanted})
        for kind, id in wanted:
            tiles.append(_picture(data, index, rows[id]))
            captions.append(f"{kind}: {id}")
    return grid(torch.stack(tiles), captions, columns=8, tile_px=TILE)


def _rows(index: Index, ids: set[str]) -> dict[str, int]:
    """Find the rows of samples."""
    return {id: row for row in range(len(index)) if ids and (id := index.record(row).id) in ids}


def _picture(data: Collection, index: Index, row: int) -> torch.Tensor:
    """A sample's picture, its middle; a grey one with a cross where there is none."""
    size = data.size
    try:
        return pictures.image(index.read(index.record(row)), data.picture, data.square, np.random.default_rng(0), "")[0]
    except BadSample:
        cross = torch.eye(size).maximum(torch.eye(size).flip(0))
        return (0.5 - 1.5 * cross).expand(3, size, size)


def _named(finding: Finding) -> str:
    more = f" and {len(finding.ids) - 4} more" if len(finding.ids) > 4 else ""
    return f"{', '.join(finding.ids[:4])}{more}: {finding.detail}"
