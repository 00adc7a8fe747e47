"""The figures of a text-to-image run on the Shapes world, from one generation pass per prompt list."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from diffusion.pipeline import Poll, Request, SamplingConfig
from lab.data.shapes import Preset, Shapes, ShapesConfig, prompts, prompts_hash
from lab.evaluation.diversity import diversity
from lab.evaluation.prompt_accuracy import Verdict, judge, shares
from lab.images import from_uint8, to_uint8
from lab.randomness import key
from lab.storage import write_whole
from scripts.assembly.drawing import Trained
from scripts.assembly.experiments import world_of
from scripts.evaluation import panel
from scripts.evaluation.panel import Panel
from scripts.interface import gallery

KINDS = ("pair", "pair_heldout_combinations", "pair_heldout_phrasings", "single")
HARDER: tuple[Preset, ...] = ("count", "full")  # asked of runs that train on them
PROMPT_SEED = 0  # settings of the sampler are chosen on lists of other seeds
OPEN_PROMPT = "a red circle"
SHOWN = 8  # pictures of each kind that are kept to be looked at

_Item = TypeVar("_Item")


class Measured(NamedTuple):
    """What was measured of a checkpoint.

    Attributes:
        figures: JSON values, the same for the same checkpoint, settings and machine.
        prompts: by kind.
        verdicts: by kind, one per prompt.
        images: by kind, (k, 3, H, W), those of the first ``SHOWN`` prompts.
    """

    figures: dict[str, Any]
    prompts: Mapping[str, Sequence[str]]
    verdicts: Mapping[str, Sequence[Verdict]]
    images: Mapping[str, Tensor]


def kinds_of(data: ShapesConfig, named: str | None) -> tuple[str, ...]:
    """Give the prompt lists for a run: those that are named, or those of pairs and singles and what else it trains on.

    Raises:
        Refused: no such list.
    """
    if named is None:
        return (*KINDS, *(kind for kind in HARDER if data.mixture.get(kind, 0) > 0))
    kinds = tuple(dict.fromkeys(name.strip() for name in named.split(",")))
    for kind in kinds:
        prompts(kind, 0, PROMPT_SEED)
    return kinds


def everything(
    trained: Trained,
    sampling: SamplingConfig,
    num: int,
    kept: Path,
    poll: Poll,
    asked: Panel,
    kinds: Sequence[str] = KINDS,
) -> Measured:
    """Measure prompt accuracy, diversity, and likeness to held-out renders.

    Args:
        trained: the run's model.
        sampling: how pictures are drawn.
        num: prompts per kind; "pair" and the diversity prompt get twice as many.
        kept: a folder that keeps each chunk of pictures when it is drawn, and in which the next call finds it if this
            one is killed; the caller removes it.
        poll: called between steps, chunks and pictures.
        asked: which figures.
        kinds: of prompts; likeness to renders is that of "pair", whether it is among them or not.

    Raises:
        Refused: the run's data is not the Shapes world.
    """
    world = world_of(trained.experiment)
    drawn = partial(draw, trained, sampling, kept, poll)
    compared = ("pair",) if asked.extractors else ()
    kinds = tuple(dict.fromkeys((*compared, *kinds))) if "prompt" in asked.metrics else compared
    lists = {kind: _prompts(kind, num) for kind in kinds}
    figures: dict[str, Any] = {
        "origin": dict(trained.origin),
        "trained": {name: trained.state[name] for name in ("step", "seen", "seconds") if name in trained.state},
        "sampling": sampling.model_dump(mode="json"),
        "prompts": {"seed": PROMPT_SEED, "hash": prompts_hash([text for texts in lists.values() for text in texts])},
        "prompt_accuracy": {},
    }
    verdicts: dict[str, list[Verdict]] = {}
    shown: dict[str, Tensor] = {}
    for kind, texts in lists.items():
        images = drawn([Request(text, number) for number, text in enumerate(texts)], kind)
        shown[kind] = images[:SHOWN]
        if "prompt" in asked.metrics:
            verdicts[kind] = [judge(image, text) for image, text in zip(_polled(images, poll), texts, strict=True)]
            figures["prompt_accuracy"][kind] = _shares(verdicts[kind])
        if kind == "pair" and asked.extractors:
            figures |= asked.likeness(to_uint8(images), texts, renders(world, len(images)), kept, poll)
    if "word_order" in asked.metrics:
        figures["word_order"] = {kind: _in_disorder(kind, num, drawn, poll) for kind in ("pair", "single")}
    if "diversity" in asked.metrics:
        images = drawn([Request(OPEN_PROMPT, number) for number in range(2 * num)], OPEN_PROMPT)
        spread = diversity(_polled(images, poll), OPEN_PROMPT)
        figures["diversity"] = {"prompt": OPEN_PROMPT, **{name: asdict(each) for name, each in spread.items()}}
    return Measured(figures, lists, verdicts, shown)


def _prompts(kind: str, num: int) -> Sequence[str]:
    return prompts(kind, num * (2 if kind == "pair" else 1), PROMPT_SEED)


def _shares(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    found = {name: asdict(share) for name, share in shares(verdicts).items()}
    return {**found.pop("right"), "attributes": found}


def _in_disorder(kind: str, num: int, drawn: Callable[[Sequence[Request], str], Tensor], poll: Poll) -> dict[str, Any]:
    """Accuracy on the same prompts, each heard with its words in a random order: what the model makes of the order."""
    texts = _prompts(kind, num)
    heard = [" ".join(key(PROMPT_SEED, "word order", k).permutation(text.split())) for k, text in enumerate(texts)]
    images = drawn([Request(text, number) for number, text in enumerate(heard)], f"{kind}, words in disorder")
    return _shares([judge(image, text) for image, text in zip(_polled(images, poll), texts, strict=True)])


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    lines = [""]
    disorder = {f"{kind}, words in disorder": share for kind, share in figures.get("word_order", {}).items()}
    accuracies = figures["prompt_accuracy"] | disorder
    if accuracies:
        lines.append(f"{'prompt accuracy':<28}{'right':>7}  {'95 % interval':<15}{'n':>5}   attributes")
    for kind, share in accuracies.items():
        parts = "  ".join(f"{name} {part['value']:.3f}" for name, part in share["attributes"].items())
        lines.append(
            f"{kind:<28}{share['value']:>7.3f}  {share['low']:.3f} - {share['high']:.3f}  {share['n']:>5}   {parts}"
        )
    lines += panel.rows(figures)
    if spread := dict(figures.get("diversity", {})):
        prompt = spread.pop("prompt")
        parts = ", ".join(
            f"{name} {part['tv']:.3f} (renders {part['tv_renders']:.3f}, limit {part['limit']:.3f})"
            for name, part in spread.items()
        )
        lines.append(f"what {prompt!r} leaves open, distance to the world's law: {parts}")
    return "\n".join(lines)


def draw(
    trained: Trained, sampling: SamplingConfig, kept: Path, poll: Poll, requests: Sequence[Request], what: str
) -> Tensor:
    """Draw pictures as a PNG would hold them: (n, 3, H, W) in [-1, 1] in steps of 2/255, the same on every process.

    Processes share the chunks out; the first alone reads and writes the folder.

    Args:
        trained, sampling, kept, poll: as of ``everything``.
        requests: what is wanted.
        what: for the progress bar.
    """
    recipe, pipeline = gallery.recipe(trained, PROMPT_SEED, sampling), trained.pipeline
    world = pipeline.runtime.world
    images = torch.zeros(len(requests), 3, pipeline.size, pipeline.size, dtype=torch.uint8)
    chunks = [requests[start : start + sampling.chunk] for start in range(0, len(requests), sampling.chunk)]
    paths = [kept / f"{gallery.digest([recipe, chunk])}.safetensors" for chunk in chunks]
    known = {k: load(path.read_bytes())["images"] for k, path in enumerate(paths) if world.is_first and path.exists()}
    missing = world.fill_from_first(images, sampling.chunk, known)

    def make(chunk: Sequence[Request]) -> Tensor:
        (drawn,) = pipeline.draw(chunk, PROMPT_SEED, sampling, world.patient(poll))
        return to_uint8(drawn).contiguous()  # whatever the memory layout of the run

    dealt = world.deal([chunks[k] for k in missing], make, images[:0], repr(what), poll)
    with tqdm(total=len(requests), unit="picture", desc=what, disable=not world.is_first) as bar:
        bar.update(sum(map(len, known.values())))
        for number, drawn in zip(missing, dealt, strict=True):
            if world.is_first:
                write_whole(paths[number], save({"images": drawn}))
            images.split(sampling.chunk)[number].copy_(drawn)
            bar.update(len(drawn))
    return from_uint8(images)


def _polled(items: Iterable[_Item], poll: Poll) -> Iterator[_Item]:
    for item in items:
        poll()
        yield item


def renders(data: ShapesConfig, num: int) -> Tensor:
    """Give the first held-out renders of pairs, (num, 3, H, W) bytes."""
    world = Shapes(data.model_copy(update={"mixture": {"pair": 1.0}}), split="heldout")
    return to_uint8(torch.stack([world.sample(PROMPT_SEED, slot).image for slot in range(num)]))


def images_per_second(trained: Trained, sampling: SamplingConfig, chunks: int = 3) -> float:
    """Median speed of drawing, in images per second."""
    requests = [Request(OPEN_PROMPT, number) for number in range(sampling.chunk)]
    speeds = []
    for _ in range(chunks):
        begin = time.perf_counter()
        list(trained.pipeline.draw(requests, 0, sampling))
        speeds.append(len(requests) / (time.perf_counter() - begin))
    return sorted(speeds)[len(speeds) // 2]
