"""What evaluate.py measures and with which networks: one pass of each over the pictures, and one ever over the data."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from diffusion.pipeline import Poll
from lab.errors import Refused
from lab.evaluation import inception, likeness
from lab.evaluation.clip_score import REMEDY as CLIP_REMEDY
from lab.evaluation.clip_score import Clip, clip_score
from lab.evaluation.dinov2 import REMEDY as DINOV2_REMEDY
from lab.evaluation.dinov2 import DinoV2
from lab.evaluation.features import EfficientNetLite0, Extractor, content, described
from lab.evaluation.figure import torch_fidelity
from lab.evaluation.inception import Inception
from lab.explanation import nearest
from lab.world import ALONE, World

Metric = Literal["prompt", "word_order", "memorization", "clip"] | likeness.Metric
METRICS: tuple[Metric, ...] = tuple(name for part in get_args(Metric) for name in get_args(part))
NETWORKS: dict[Metric, str] = {
    "distances": "lite0",
    "precision_recall": "lite0",
    "fid": "inception",
    "kid": "inception",
    "fd_dinov2": "dinov2",
    "cmmd": "clip",
    "clip": "clip",
}
OF_PICTURES: dict[Metric, str] = {"prompt": "lite0", "diversity": "lite0", "memorization": "lite0"}  # not of the Shapes
OFFLINE: tuple[Metric, ...] = ("prompt", "diversity", "distances", "precision_recall", "memorization")
SECTIONS = ("distances", "support", "vendi", "clip")


@dataclass(frozen=True)
class Panel:
    """The figures that are asked for.

    Attributes:
        metrics: their names.
        networks: which network a metric is read from, where it is from one.
        extractors: those networks.
        cache: a folder that keeps the features of the data.
        world: the processes that share the passes of the networks out.
    """

    metrics: frozenset[Metric]
    networks: Mapping[Metric, str]
    extractors: Mapping[str, Extractor]
    cache: Path
    world: World = ALONE

    @property
    def identity(self) -> dict[str, Any]:
        """What figures are functions of beside the pictures, as JSON values."""
        told = {
            kind: [network.name, network.weights_sha256, network.resize] for kind, network in self.extractors.items()
        }
        return {"metrics": sorted(self.metrics), "extractors": told}

    def described(self, images: Tensor, extractor: Extractor, folder: Path, poll: Poll) -> Tensor:
        """Describe (n, 3, H, W) bytes as (n, width) features, on every process; see ``lab.evaluation.features``."""
        return described(images, extractor, folder, poll, self.world)

    def likeness(
        self, pictures: Tensor, captions: Sequence[str], reference: Tensor, kept: Path, poll: Poll
    ) -> dict[str, list[dict[str, Any]]]:
        """Measure pictures against a reference set and against their captions; several processes do so together.

        Args:
            pictures: (n, 3, H, W) uint8.
            captions: n texts.
            reference: (m, 3, H, W) uint8.
            kept: a folder that keeps the features of the pictures, so that a killed evaluation goes on.
            poll: called between passes.

        Returns:
            Figures by section as JSON values, each with the hashes of weights and reference set, and the resize filter.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for kind, extractor in self.extractors.items():
            asked = {name for name in self.metrics if self.networks.get(name) == kind}
            provenance = {
                "weights_sha256": extractor.weights_sha256,
                "resize": extractor.resize,
                "reference_sha256": content(reference),
            }
            a = self.described(pictures, extractor, kept / "features", poll)
            sections = {}
            if of_both := [name for name in get_args(likeness.Metric) if name in asked]:
                b = self.described(reference, extractor, self.cache, poll)
                sections = likeness.likeness(of_both, a, b, extractor.name)
            if "clip" in asked:
                assert isinstance(extractor, Clip)
                sections["clip"] = [clip_score(a, extractor, captions)]
            for section, figures in sections.items():
                found.setdefault(section, []).extend({**asdict(figure), **provenance} for figure in figures)
        return found


def rows(figures: Mapping[str, Any]) -> list[str]:
    """Lay the figures of all sections out, a line each."""
    found = []
    for figure in (figure for section in SECTIONS for figure in figures.get(section, [])):
        notes = f"  ({'; '.join(figure['notes'])})" if figure["notes"] else ""
        interval = f"[{figure['low']:.4f}, {figure['high']:.4f}]"
        against = f" against {figure['m']}" if figure["m"] else ""
        found.append(f"{figure['name']}: {figure['value']:.4f}  {interval}  n {figure['n']}{against}{notes}")
    return found


def of_shapes() -> Panel:
    """Give what is measured of the Shapes unless something else is asked for.

    Raises:
        Refused: the extra "evaluate" is not installed.
    """
    return choose(Namespace(metrics=None, no_distances=False, cache=Path("data/cache/features")), is_shapes=True)


def choose(options: Namespace, *, is_shapes: bool, world: World = ALONE) -> Panel:
    """Read --metrics and the flags beside it, and load what it takes.

    Raises:
        Refused: no such metric, none that goes with this data, or weights that are not on this machine.
    """
    metrics = _read(options.metrics) if options.metrics else frozenset(OFFLINE)
    networks = NETWORKS if is_shapes else NETWORKS | OF_PICTURES
    if is_shapes:
        if options.metrics and "memorization" in metrics:
            raise Refused("--metrics memorization: the Shapes are drawn anew for every sample, and have no copies")
        metrics -= {"memorization"}
    elif "word_order" in metrics:
        raise Refused(
            "--metrics word_order: judged by the verifier of data.kind=shapes, and this run's data is another"
        )
    if options.no_distances:
        pixels = {"prompt", "memorization"}  # of pictures; the Shapes are read without any network
        metrics = frozenset(name for name in metrics if name in pixels or name not in networks)
        networks = {}
    if not metrics:
        raise Refused("--no-distances leaves nothing of --metrics: leave one of them out")
    if any(name in networks for name in metrics.intersection(get_args(likeness.Metric))):
        torch_fidelity("metric_kid")  # rather missed now than after the pictures are drawn
    kinds = sorted({networks[name] for name in metrics if name in networks})
    return Panel(metrics, networks, {kind: _load(kind, options) for kind in kinds}, options.cache, world)


def _read(text: str) -> frozenset[Metric]:
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in METRICS:
            raise Refused(f"--metrics {name}: no such metric{nearest(name, METRICS)}; known are {', '.join(METRICS)}")
    return frozenset(name for name in METRICS if name in asked)


def _load(kind: str, options: Namespace) -> Extractor:
    match kind:
        case "inception":
            return Inception(inception.find(options.inception), options.inception_resize)
        case "clip":
            if not options.clip:
                raise Refused(f"--metrics clip and cmmd need a CLIP, named with --clip: {CLIP_REMEDY}")
            return Clip(options.clip)
        case "dinov2":
            if not options.dinov2:
                raise Refused(f"--metrics fd_dinov2 needs the weights of DINOv2: {DINOV2_REMEDY}")
            return DinoV2(options.dinov2)
    return EfficientNetLite0()
