"""The open_clip door for images and captions: CLIP's features of both, and how well they go together.

    CLIP score = mean over pictures of 100 max(0, cosine(picture, its caption))

Any CLIP of open_clip, from a folder, the hub's cache or a file, in safetensors; nothing is downloaded. Scores of
different weights cannot be compared. CLIP reads 77 tokens, and what a longer caption says after them is lost: such
captions are counted.

Source: Radford et al. 2021, arXiv:2103.00020; Hessel et al. 2021, arXiv:2104.08718, eq. 1, with the weight 100 that is
common now where they have 2.5.
"""

from collections.abc import Sequence
from typing import Any, final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lab import pretrained
from lab.errors import Refused
from lab.evaluation.features import full_precision, resize
from lab.evaluation.figure import CLIP, Figure, matrices
from lab.evaluation.intervals import mean
from lab.text import clip
from lab.text.clip import Published

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's own training
CHUNK = 16  # captions per pass
L14_336 = {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14}
REMEDY = (
    "name a folder with open_clip_config.json and open_clip_model.safetensors, or an architecture and a tag or "
    "file, as in ViT-L-14-336:openai (huggingface-cli download timm/vit_large_patch14_clip_336.openai, where there is "
    "a network, puts these into the cache) or ViT-B-32:/weights/mine.safetensors"
)


@final
class Clip:
    """A CLIP with both halves; an extractor of images.

    Args:
        name: a folder, a repository in the hub's cache, or ARCHITECTURE:TAG or ARCHITECTURE:FILE as open_clip has them.
        device: where it runs.
        setting: that holds the name, for messages.

    Raises:
        Refused: it is not on this machine, is not built as CLIP's are, or its weights do not fit.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", setting: str = "--clip") -> None:
        from open_clip import SimpleTokenizer

        published = clip.find(name, allow_download=False, setting=setting, remedy=REMEDY)
        self.weights_sha256 = pretrained.digest([published.file], None)
        self.network = _load(published).to(device).eval().requires_grad_(False)
        side = self.network.visual.image_size
        self.side = side[0] if isinstance(side, tuple | list) else int(side)
        self.resize = f"bicubic, antialiased, {self.side}"
        self.mean, self.std = (
            torch.tensor(published.preprocess.get(what) or usual)[:, None, None]
            for what, usual in (("mean", MEAN), ("std", STD))
        )
        self.context = int(published.shape.get("context_length", 77))
        self.width = int(published.model["embed_dim"])
        self.name = _name(published)
        self._tokenizer = SimpleTokenizer(context_length=self.context, **published.shape.get("tokenizer_kwargs", {}))

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images (b, 3, H, W), RGB, as float32 features (b, width) of any length, on its device."""
        device = next(self.network.parameters()).device
        with full_precision(device):
            pixels = resize(images.to(device), self.side) / 255
            features: Tensor = self.network.encode_image((pixels - self.mean.to(device)) / self.std.to(device))
            return features

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Describe captions as float32 features (n, width) of any length, on the CPU; each whatever it stands beside.

        Always ``CHUNK`` captions pass together, the last time padded.
        """
        device = next(self.network.parameters()).device
        tokens, parts = self._tokenizer(list(captions)), []
        for few in tokens.split(CHUNK):
            padded = torch.cat((few, few[-1:].expand(CHUNK - len(few), -1)))
            with full_precision(device):
                parts.append(self.network.encode_text(padded.to(device))[: len(few)].cpu())
        return torch.cat(parts)

    def num_cut(self, captions: Sequence[str]) -> int:
        """Count the captions that are longer than what is read of them, start and end tokens included."""
        return sum(len(self._tokenizer.encode(caption)) + 2 > self.context for caption in captions)


def clip_score(pictures: Tensor, features: Clip, captions: Sequence[str]) -> Figure:
    """Measure how well pictures go with their captions.

    Args:
        pictures: (n, d) features of the pictures, n at least 2.
        features: the CLIP that made them.
        captions: n texts.

    Raises:
        Refused: there are not as many captions as pictures, or fewer than two.
        NonFinite: a feature is infinite or not a number.
    """
    if len(captions) != len(pictures) or len(captions) < 2:
        raise Refused(f"{len(pictures)} pictures and {len(captions)} captions: a CLIP score needs two pairs at least")
    found = matrices(pictures, features.texts(captions), at_least=2, what="a CLIP score")
    first, second = (nn.functional.normalize(torch.from_numpy(x), dim=1) for x in found)
    score = mean((100 * (first * second).sum(dim=1).clamp(min=0)).tolist())
    cut = features.num_cut(captions)
    return Figure(
        name=f"clip_score ({features.name})",
        extractor=features.name,
        value=score.value,
        low=score.low,
        high=score.high,
        n=score.n,
        m=0,
        interval="95 %, Student's t over pictures",
        target="mean of 100 max(0, cosine(picture, caption)) of all such captions",
        notes=(f"{cut} of {score.n} captions are longer than {features.context} tokens, and were cut",) if cut else (),
    )


def _name(published: Published) -> str:
    """Name a CLIP by its half for images: the published name for the one that CMMD is of, numbers for others."""
    image = published.model["vision_cfg"]
    if published.quick_gelu and all(image.get(key) == value for key, value in L14_336.items()):
        return CLIP
    if "timm_model_name" in image:
        return f"clip-{image['timm_model_name']}"
    layers = image["layers"]
    depth = layers if isinstance(layers, int) else "-".join(map(str, layers))
    return f"clip-{image['width']}x{depth}-{image.get('patch_size', 16)}-{image['image_size']}"


def _load(published: Published) -> Any:
    """Build a CLIP and fill in its weights, without drawing a random number."""
    from open_clip import model as kinds

    model = {**published.model, "quick_gelu": published.quick_gelu}
    is_custom = model.pop("custom_text", False)
    if foreign := {"hf_model_name", "hf_tokenizer_name"} & published.shape.keys() or {"multimodal_cfg"} & model.keys():
        raise Refused(f"{published.file}: its text encoder is no plain CLIP ({sorted(foreign)[0]}): {REMEDY}")
    try:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = (kinds.CustomTextCLIP if is_custom else kinds.CLIP)(**model)
        network.load_state_dict(safetensors.torch.load_file(published.file))
    except (OSError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise Refused(f"{published.file} does not hold this CLIP: {' '.join(str(error).split())[:300]}") from error
    return network
