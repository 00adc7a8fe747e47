"""CLIP models that others have trained: their architecture, weights and the pictures that they expect, by open_clip.

Named by a folder as open_clip writes it (open_clip_config.json and safetensors), by a repository of the hub that is in
the cache, or by one of open_clip's architectures and a file or tag: ``ViT-B-32@weights.safetensors``,
``ViT-B-32@laion2b_s34b_b79k``. Nothing is downloaded, and nothing but safetensors is read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lab import pretrained
from lab.errors import Refused
from lab.explanation import nearest
from lab.resampling import bicubic
from lab.runtime import Runtime
from lab.scorer.judge import Judge

REMEDY = (
    "name a folder with open_clip_config.json and *.safetensors, or an architecture and a file, as in "
    "clip:ViT-B-32@weights.safetensors"
)
UNKNOWN = ("hf_model_name", "hf_tokenizer_name")  # text towers and tokenizers that open_clip takes from the hub


class Found(NamedTuple):
    """Where a published CLIP lies, and what it is.

    Attributes:
        file: its weights.
        settings: of open_clip's model.
        mean, std: of the channels of the pictures that it expects, in [0, 1].
    """

    file: Path
    settings: Mapping[str, Any]
    mean: Sequence[float]
    std: Sequence[float]


class PublishedClip:
    """A published CLIP as a judge needs it; see ``lab.scorer.judge.Directions``.

    Args:
        model: of open_clip, in evaluation mode and on the device.
        found: what it is.
    """

    def __init__(self, model: Any, found: Found) -> None:
        self.model, self.found = model, found
        size = found.settings["vision_cfg"].get("image_size", 224)
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.context: int = found.settings["text_cfg"].get("context_length", 77)

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """Give the directions (b, d) of pictures (b, 3, H, W) in [-1, 1], of any size."""
        mean, std = (torch.tensor(each).to(images)[:, None, None] for each in (self.found.mean, self.found.std))
        resized = bicubic(images, self.size).clamp(-1, 1)
        return F.normalize(self.model.encode_image(((resized + 1) / 2 - mean) / std).float(), dim=-1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Give the directions (b, d) of texts, of which the first tokens are heard."""
        from open_clip.tokenizer import SimpleTokenizer

        ids = SimpleTokenizer(context_length=self.context)(list(texts))
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(ids.to(device)).float(), dim=-1)

    def cut(self, texts: Sequence[str]) -> int:
        """Count the texts of more tokens, start and end included, than it hears: 77 in most."""
        from open_clip.tokenizer import SimpleTokenizer

        tokenizer = SimpleTokenizer()
        return sum(len(tokenizer.encode(text)) + 2 > self.context for text in texts)


def load(name: str, runtime: Runtime) -> Judge:
    """Load a published CLIP.

    Args:
        name: see the module's text.
        runtime: where it computes.

    Raises:
        Refused: it is nowhere on this machine, unknown to open_clip, of another kind, or its weights do not fit.
    """
    found = find(name)
    model = _built(name, found.settings)
    try:
        model.load_state_dict(load_file(found.file))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise Refused(f"clip:{name}: {found.file} does not fit: {' '.join(str(error).split())[:300]}") from error
    model = runtime.place(model).eval().requires_grad_(False)
    origin = {"published": name, "weights_sha256": pretrained.digest([found.file], None)}
    return Judge(PublishedClip(model, found), runtime, origin)


def find(name: str) -> Found:
    """Find a published CLIP by its name, without loading it.

    Raises:
        Refused: as from ``load``.
    """
    architecture, at, tag = name.partition("@")
    if not at:
        folder = pretrained.find("clip", name, ("open_clip_config.json",), False, REMEDY)
        told = pretrained.settings_of(folder / "open_clip_config.json", REMEDY)
        return Found(_weights_in(folder), told.get("model_cfg", told), *_colours([told.get("preprocess_cfg", {})]))
    import open_clip

    settings = open_clip.get_model_config(architecture)
    if settings is None:
        known = nearest(architecture, open_clip.list_models())
        raise Refused(f"clip:{name}: open_clip knows no model {architecture}{known}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if Path(tag).is_file():
        if Path(tag).suffix != ".safetensors":
            raise Refused(f"clip:{name}: only weights in safetensors are read")
        published = [open_clip.get_pretrained_cfg(architecture, each) for each in tags]
        return Found(Path(tag), settings, *_colours(published))
    told = open_clip.get_pretrained_cfg(architecture, tag)
    repository = told.get("hf_hub", "").strip("/")
    if not repository:
        known = ", ".join(tags) or "none"
        raise Refused(f"clip:{name}: {tag} is no file and no tag of {architecture} (known: {known})")
    folder = pretrained.find("clip", repository, (), False, REMEDY)
    return Found(_weights_in(folder), settings, *_colours([told]))


def _weights_in(folder: Path) -> Path:
    """The one file of weights; a repository may hold some for other libraries beside open_clip's own."""
    files = pretrained.files(folder, REMEDY)
    return next((file for file in files if file.name == "open_clip_model.safetensors"), files[0])


def _colours(told: Sequence[Mapping[str, Any]]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the channels where all that is told agrees, else those of OpenAI, open_clip's default."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    default = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    known = {tuple(tuple({**default, **each}[name]) for name in default) for each in told}
    mean, std = known.pop() if len(known) == 1 else default.values()
    return mean, std


def _built(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """open_clip's model of these settings, with fresh weights."""
    from open_clip.model import CLIP, CustomTextCLIP

    settings = dict(settings)
    text, own = settings.get("text_cfg", {}), settings.pop("custom_text", False)
    if strange := [key for key in UNKNOWN if text.get(key)] + [key for key in ("multimodal_cfg",) if key in settings]:
        raise Refused(f"clip:{name}: takes more than open_clip's own tokenizer and towers ({strange[0]}): {REMEDY}")
    with torch.random.fork_rng():
        made: nn.Module = (CustomTextCLIP if own else CLIP)(**settings)
    return made
