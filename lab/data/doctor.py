"""What is wrong with a data set, found before anybody trains on it.

Every sample is looked at once: its bytes are decoded, its captions counted, and a thumbnail of 16 x 16 pixels is kept.
What follows is a list of findings, each of which names the samples it is about:

    broken       cannot be used: no image, cut short, no caption, ...; a run would put it into quarantine
    duplicate    images of the same pixels
    near         images, each of which resembles another: thumbnails less than ``NEAR`` grey levels apart (root mean
                 square)
    leak         duplicates or near-duplicates of which some are trained on and others held out
    empty        a caption without a word
    repeated     one caption of several images
    long         a caption that the text encoder cuts
    small        an image with fewer pixels than what it becomes
    blank        an image of a single colour

Near-duplicates are found by their distance, not by a hash that noise may turn: the lowest frequencies of the thumbnails
span few dimensions, in which no two of them are further apart than in all, so a search there misses nothing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from lab.data import buckets, pictures
from lab.data.caption import spoken
from lab.data.collection import Collection
from lab.data.index import Index
from lab.data.source import BadSample, Source
from lab.data.split import Split
from lab.images import Shape, to_uint8

Kind = Literal["broken", "duplicate", "near", "leak", "empty", "repeated", "long", "small", "blank"]
Count = Callable[[Sequence[str]], list[int]]
THUMBNAIL = 16  # pixels on a side
NEAR = 6.0  # grey levels of 255
BLANK = 0.5  # grey levels of 255
LOW = 4  # frequencies per axis that the search looks at


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth a look.

    Attributes:
        kind: see the module's text.
        ids: the samples that it is about.
        detail: what exactly.
    """

    kind: Kind
    ids: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Seen:
    """What is kept of a sample that was looked at.

    Attributes:
        id: of the sample.
        split: its side.
        captions: every text that may be spoken of it.
        size: width and height of the original.
        pixels: hash of the decoded picture.
        thumbnail: (16, 16, 3) bytes.
        fault: why it cannot be used; then the last three mean nothing.
    """

    id: str
    split: Split
    captions: tuple[str, ...]
    size: tuple[int, int] = (0, 0)
    pixels: bytes = b""
    thumbnail: np.ndarray = field(default_factory=lambda: np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8))
    fault: BadSample | None = None


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        samples: how many were looked at, of each side.
        findings: what is wrong.
        lengths: tokens per caption, sorted; empty where they were not counted.
        window: tokens that the text encoder takes.
        sizes: (n, 2) width and height of the pictures.
        shapes: how many of them become which shape.
        captions: how many there are, and how many different ones.
        alike: samples that resemble another; of a world without an end they are no findings.
    """

    samples: Mapping[str, int]
    findings: Sequence[Finding]
    lengths: Sequence[int]
    window: int
    sizes: np.ndarray
    shapes: Mapping[Shape, int]
    captions: tuple[int, int]
    alike: int

    def of(self, kind: Kind) -> list[Finding]:
        """Give the findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]


def look(collection: Collection, index: Index) -> Iterator[Seen]:
    """Look at every sample of a finite data set, with a progress bar."""
    heldout = index.places < collection.split.heldout
    ground = pictures.GROUNDS["white"]
    for row in tqdm(range(len(index)), desc=f"looking at {collection.path}", unit="sample", disable=None):
        record = index.record(row)
        split: Split = "heldout" if heldout[row] else "train"
        silent = ("",) if any(not text for _, text in record.captions) else ()
        captions = (*spoken(record.captions, collection.captions), *silent)
        try:
            if record.fault:
                raise record.fault
            picture = pictures.opaque(pictures.decode(index.read(record)), ground)
            if min(picture.size) < collection.picture.smallest:
                raise BadSample("image too small", f"{picture.width}x{picture.height}")
        except BadSample as bad:
            yield Seen(record.id, split, captions, fault=bad)
        else:
            yield _seen(record.id, split, captions, picture)


def look_at_slots(source: Source, split: Split, seed: int, num: int) -> Iterator[Seen]:
    """Look at the first samples of a source, also of one without an end."""
    num = min(num, source.num or num)
    for slot in tqdm(range(num), desc=f"looking at {num} samples, {split}", unit="sample", disable=None):
        sample = source.sample(seed, slot)
        for fault in sample.faults:
            yield Seen(fault.id, split, (), fault=BadSample(fault.reason, fault.detail))
        levels = to_uint8(sample.image[None])[0].permute(1, 2, 0).numpy()
        yield _seen(sample.id, split, (sample.caption,), Image.fromarray(levels))


def examine(
    seen: Iterable[Seen], shapes: Sequence[Shape], count: Count | None = None, window: int = 0, *, finite: bool = True
) -> Report:
    """Find out what is wrong.

    Args:
        seen: the samples.
        shapes: that pictures become, from the highest to the widest.
        count: gives the tokens of captions; ``None`` where nobody counts them.
        window: tokens that the text encoder takes.
        finite: whether the data has an end; where it has none, samples that resemble each other and captions that
            come again are no findings.
    """
    everything = list(seen)
    good = [each for each in everything if each.fault is None]
    findings = [Finding("broken", (each.id,), str(each.fault)) for each in everything if each.fault is not None]
    alike = _alike(good)
    if finite:
        findings += alike + _repeated(good)
    sizes = np.array([each.size for each in good], dtype=np.int64).reshape(-1, 2)
    numbers = buckets.nearest(sizes, shapes)
    findings += _captions(everything) + _pictures(good, [shapes[number] for number in numbers])
    texts = sorted({text for each in everything for text in each.captions if text})
    lengths = dict(zip(texts, count(texts), strict=True)) if count else {}
    first = {text: each.id for each in reversed(everything) for text in each.captions}
    findings += [
        Finding("long", (first[text],), f"{length} tokens, of which {window} are heard: {text[:80]!r}")
        for text, length in sorted(lengths.items())
        if length > window
    ]
    num = sum(len(each.captions) for each in everything)
    return Report(
        samples={split: sum(each.split == split for each in everything) for split in ("train", "heldout")},
        findings=findings,
        lengths=sorted(lengths[text] for each in everything for text in each.captions if text in lengths),
        window=window,
        sizes=sizes,
        shapes=buckets.counted(numbers, shapes),
        captions=(num, len(texts)),
        alike=len({id for finding in alike for id in finding.ids}),
    )


def _seen(id: str, split: Split, captions: tuple[str, ...], picture: Image.Image) -> Seen:
    pixels = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Seen(id, split, captions, picture.size, pixels, np.asarray(small))


def _alike(good: Sequence[Seen]) -> list[Finding]:
    """Duplicates, near-duplicates, and those of them that lie on both sides."""
    same = defaultdict(list)
    for each in good:
        same[each.pixels].append(each)
    groups = list(same.values())
    findings: list[Finding] = []
    for group in groups:
        findings += _family("duplicate", group, "the same pixels")
    for members, nearest in _connected(near_pairs([group[0].thumbnail for group in groups])):
        family = [each for member in members for each in groups[member]]
        findings += _family("near", family, f"thumbnails from {nearest:.1f} grey levels apart on")
    return findings


def _family(kind: Kind, family: Sequence[Seen], detail: str) -> list[Finding]:
    """The finding of images that are alike, and another one if they lie on both sides."""
    if len(family) < 2:
        return []
    ids = tuple(each.id for each in family)
    found = [Finding(kind, ids, detail)]
    if len({each.split for each in family}) > 1:
        heldout = ", ".join(each.id for each in family if each.split == "heldout")
        found.append(Finding("leak", ids, f"{detail}; held out: {heldout}"))
    return found


def _connected(pairs: Sequence[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Give the sets of numbers that pairs connect, sorted, each with its smallest distance."""
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet({number for one, other, _ in pairs for number in (one, other)})
    for one, other, _ in pairs:
        sets.merge(one, other)
    nearest: dict[int, float] = {}
    for one, _, distance in pairs:
        nearest[sets[one]] = min(distance, nearest.get(sets[one], distance))
    return [(sorted(sets.subset(root)), distance) for root, distance in nearest.items()]


def near_pairs(thumbnails: Sequence[np.ndarray], limit: float = NEAR) -> list[tuple[int, int, float]]:
    """Find all pairs whose root-mean-square difference is below a limit, in grey levels: (i, j, difference), i < j."""
    from scipy.fft import dctn
    from scipy.spatial import KDTree

    if len(thumbnails) < 2:
        return []
    levels = np.stack(thumbnails).astype(np.float32)  # (n, 16, 16, 3)
    low = dctn(levels, axes=(1, 2), norm="ortho")[:, :LOW, :LOW].reshape(len(levels), -1)
    flat = levels.reshape(len(levels), -1)
    radius = limit * flat.shape[1] ** 0.5
    found = []
    for one, other in KDTree(low).query_pairs(radius * (1 + 1e-6), output_type="ndarray").tolist():
        distance = float(np.sqrt(np.mean(np.square(flat[one] - flat[other]))))
        if distance < limit:
            found.append((min(one, other), max(one, other), distance))
    return sorted(found)


def _repeated(good: Sequence[Seen]) -> list[Finding]:
    owners = defaultdict(list)
    for each in good:
        for text in dict.fromkeys(each.captions):
            if text:
                owners[text].append(each.id)
    return [
        Finding("repeated", tuple(ids), f"{len(ids)} images are called {text[:80]!r}")
        for text, ids in owners.items()
        if len(ids) > 1
    ]


def _captions(everything: Sequence[Seen]) -> list[Finding]:
    return [
        Finding("empty", (each.id,), "a caption without a word")
        for each in everything
        if any(not text.strip() for text in each.captions)
    ]


def _pictures(good: Sequence[Seen], shapes: Sequence[Shape]) -> list[Finding]:
    findings = []
    for each, (height, width) in zip(good, shapes, strict=True):
        if each.size[0] < width or each.size[1] < height:
            small = f"{each.size[0]}x{each.size[1]}, enlarged to {width}x{height}"
            findings.append(Finding("small", (each.id,), small))
        if each.thumbnail.std(axis=(0, 1)).max() < BLANK:
            findings.append(Finding("blank", (each.id,), "one colour all over"))
    return findings
