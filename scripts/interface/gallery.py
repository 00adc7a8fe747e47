"""Pictures on disk: recipes, file names, the index and the sheet, for the scripts that draw."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.pipeline import Poll, Request, SamplingConfig, within_memory
from lab.environment import versions
from lab.errors import BadData, Refused
from lab.images import from_uint8, grid, read_image, save_png, to_uint8
from lab.lock import Lock
from lab.storage import sweep, write_whole
from lab.world import ALONE, World
from scripts.assembly.drawing import Trained
from superres.pipeline import enlarged


def digest(recipe: object) -> str:
    """Name JSON values by 20 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Picture:
    """One picture that is wanted.

    Attributes:
        request: prompt, number and negative prompt.
        recipe: exactly what determines it.
    """

    request: Request
    recipe: Mapping[str, object]

    @property
    def name(self) -> str:
        """Of its file: number and hash of the recipe."""
        return f"{self.request.number:04d}-{digest(self.recipe)}.png"


def read_prompts(given: Sequence[str], path: Path | None) -> list[str]:
    """Put the prompts of the command line and of a file together.

    Raises:
        Refused: there are none, or the file cannot be read as text.
    """
    prompts = list(given)
    if path is not None:
        try:
            prompts += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"--prompts-file {path} cannot be read as text: {error}") from None
    if not prompts:
        raise Refused('no prompts: give some, as in "a red circle", or --prompts-file FILE; "" is the empty prompt')
    return list(dict.fromkeys(prompts))


def wanted(
    trained: Trained, prompts: Sequence[str], num: int, seed: int, negative: str, sampling: SamplingConfig
) -> list[Picture]:
    """List the pictures with their recipes, prompt by prompt."""
    check(num, negative, sampling)
    shared = recipe(trained, seed, sampling)
    requests = [Request(prompt, number, negative) for prompt in prompts for number in range(num)]
    return [Picture(request, {**request._asdict(), **shared}) for request in requests]


def check(num: int, negative: str, sampling: SamplingConfig) -> None:
    """Refuse no pictures, and a negative prompt that does nothing.

    Raises:
        Refused: either.
    """
    if num < 1:
        raise Refused(f"--num {num}: at least 1 picture per prompt")
    if negative and sampling.guidance == 1:
        raise Refused("--negative does nothing at --guidance 1: raise the guidance or leave it out")


def recipe(trained: Trained, seed: int, sampling: SamplingConfig) -> dict[str, object]:
    """Give what determines pictures beside what is asked of them."""
    runtime = trained.pipeline.runtime
    return {
        **trained.origin,
        "seed": seed,
        "sampling": sampling.model_dump(mode="json"),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
        "versions": {name: versions()[name] for name in ("wordbrush", "torch")},
    }


@contextmanager
def alone(out: Path, world: World = ALONE) -> Iterator[None]:
    """Be the one process that writes to a folder of pictures, freed of what a killed one left half-written.

    Of several that work together that is the first.

    Raises:
        Refused: another process is writing to it.
    """
    if not world.is_first:
        yield
        return
    lock = Lock(out / ".lock")
    try:
        sweep(out)
        yield
    finally:
        lock.release()


def draw(
    trained: Trained, pictures: Sequence[Picture], seed: int, sampling: SamplingConfig, out: Path, poll: Poll
) -> tuple[list[Picture], int]:
    """Draw the pictures that are not there yet, and save each as soon as its chunk is done.

    However this ends, short of SIGKILL, the index then lists what is there; after a SIGKILL the next call does it.
    Several processes share the chunks out, of which the first knows what is there and saves.
    Where memory runs out, what is still missing becomes pictures of a smaller chunk: other recipes, other files.

    Args:
        trained, seed, sampling: what the recipes of the pictures say.
        pictures: wanted.
        out: their folder, written to by this process alone.
        poll: see ``Pipeline.draw``.

    Returns:
        The pictures as they are there, and how many of them were drawn now.

    Raises:
        OutOfMemory: a single picture is too much.
    """
    found, drawn, world = list(pictures), 0, trained.pipeline.runtime.world
    _read_index(out / "index.jsonl")

    def complete(sampling: SamplingConfig) -> None:
        nonlocal found, drawn
        smaller, there = {"sampling": sampling.model_dump(mode="json")}, _there(found, out, world)
        found = [p if p.name in there else Picture(p.request, {**p.recipe, **smaller}) for p in found]
        there = _there(found, out, world)
        missing = [picture for picture in found if picture.name not in there]
        chunks = [missing[start : start + sampling.chunk] for start in range(0, len(missing), sampling.chunk)]
        with tqdm(total=len(missing), unit="picture", desc="sample", disable=not (missing and world.is_first)) as bar:
            for chunk, images in zip(chunks, _chunks(trained, chunks, seed, sampling, poll), strict=True):
                for picture, image in zip(chunk, from_uint8(images), strict=True):
                    if world.is_first:
                        save_png(out / picture.name, image, {"recipe": json.dumps(picture.recipe, sort_keys=True)})
                    drawn += 1
                    bar.update()

    try:
        within_memory(complete, sampling)
    finally:
        if world.is_first:
            enter(found, out)
    return found, drawn


def _there(pictures: Sequence[Picture], out: Path, world: World) -> set[str]:
    """The names of the pictures that are there, as the first process sees it."""
    names = [picture.name for picture in pictures if (out / picture.name).exists()]
    return set(world.gather_text("\n".join(names))[0].split())


def _chunks(
    trained: Trained, chunks: Sequence[Sequence[Picture]], seed: int, sampling: SamplingConfig, poll: Poll
) -> Iterator[Tensor]:
    """Draw chunks of pictures and let them pass the upscalers: (k, 3, H, W) bytes each, on every process."""
    pipeline, world = trained.pipeline, trained.pipeline.runtime.world
    inner, factor = world.patient(poll), prod(each.factor for each in trained.upscalers)
    height, width = (factor * side for side in pipeline.drawn)

    def make(chunk: Sequence[Picture]) -> Tensor:
        requests = [picture.request for picture in chunk]
        drawn = pipeline.draw(requests, seed, sampling, inner)
        (images,) = enlarged(drawn, trained.upscalers, requests, seed, sampling.chunk, inner)
        return to_uint8(images).contiguous()

    return world.deal(chunks, make, torch.empty(0, 3, height, width, dtype=torch.uint8), "the pictures", poll)


def enter(pictures: Sequence[Picture], out: Path) -> None:
    """Enter those of the pictures that are there into the index."""
    index = _read_index(out / "index.jsonl")
    index |= {picture.name: picture.recipe for picture in pictures if (out / picture.name).exists()}
    lines = (json.dumps({"file": name, **recipe}) + "\n" for name, recipe in index.items())
    write_whole(out / "index.jsonl", "".join(lines).encode())


def show(pictures: Sequence[Picture], out: Path, columns: int | None = None) -> Path:
    """Lay the pictures out with their prompts as ``grid-<hash of the pictures>.png``."""
    sheet = out / f"grid-{digest([picture.name for picture in pictures])}.png"
    images = torch.stack([read_image(out / picture.name) for picture in pictures])
    save_png(sheet, grid(images, [picture.request.prompt for picture in pictures], columns))
    return sheet


def _read_index(path: Path) -> dict[str, Mapping[str, object]]:
    if not path.exists():
        return {}
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines() if line]
        return {entry.pop("file"): entry for entry in entries}
    except (ValueError, KeyError, AttributeError) as error:
        raise BadData(f"{path} is not an index of pictures ({error}); move it away") from None
