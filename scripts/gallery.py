"""Pictures on disk: recipes, file names, the index and the sheet, for the scripts that draw."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion.pipeline import Request, SamplingConfig
from lab.environment import versions
from lab.errors import BadData, Refused
from lab.images import grid, read_image, save_png
from lab.storage import write_whole
from scripts.assemble import Trained


def digest(recipe: object) -> str:
    """Name JSON values by 20 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Picture:
    """One picture that is wanted.

    Attributes:
        request: prompt, number and negative prompt.
        recipe: exactly what determines it.
        name: of its file: number and hash of the recipe.
    """

    request: Request
    recipe: Mapping[str, object]
    name: str


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
    if num < 1:
        raise Refused(f"--num {num}: at least 1 picture per prompt")
    if negative and sampling.guidance == 1:
        raise Refused("--negative does nothing at --guidance 1: raise the guidance or leave it out")
    runtime = trained.pipeline.runtime
    shared = {
        **trained.origin,
        "seed": seed,
        "sampling": sampling.model_dump(mode="json"),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
        "versions": {name: versions()[name] for name in ("wordbrush", "torch")},
    }
    pictures = []
    for request in (Request(prompt, number, negative) for prompt in prompts for number in range(num)):
        recipe = {"prompt": request.prompt, "number": request.number, "negative": request.negative, **shared}
        pictures.append(Picture(request, recipe, f"{request.number:04d}-{digest(recipe)}.png"))
    return pictures


def draw(trained: Trained, pictures: Sequence[Picture], seed: int, sampling: SamplingConfig, out: Path) -> int:
    """Draw the pictures that are not there yet, save each as soon as it is done, and bring the index up to date.

    Returns:
        How many were drawn.
    """
    index = _read_index(out / "index.jsonl")
    missing = [picture for picture in pictures if not (out / picture.name).exists()]
    waiting = iter(missing)
    with tqdm(total=len(missing), unit="picture", desc="sample", disable=not missing) as bar:
        for images in trained.pipeline.draw([picture.request for picture in missing], seed, sampling):
            for image in images:
                picture = next(waiting)
                save_png(out / picture.name, image, {"recipe": json.dumps(picture.recipe, sort_keys=True)})
                bar.update()
    index |= {picture.name: picture.recipe for picture in pictures}
    lines = (json.dumps({"file": name, **recipe}) for name, recipe in index.items())
    write_whole(out / "index.jsonl", ("\n".join(lines) + "\n").encode())
    return len(missing)


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
