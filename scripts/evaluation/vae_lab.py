"""The figures of an autoencoder's run: what it keeps of held-out pictures, and what its latents are like.

Pictures are reconstructed from the mean of the posterior; statistics, spectrum and use of codes are those of latents
drawn from it. Beside the autoencoder stand two baselines with no more numbers per picture, fitted on pictures that it
was trained on (``lab.evaluation.baselines``).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lab import runtime as runtimes
from lab.data.shapes import ShapesConfig
from lab.evaluation import baselines, perceptual
from lab.evaluation.distances import NUM_GROUPS
from lab.evaluation.features import EfficientNetLite0
from lab.evaluation.intervals import wilson
from lab.evaluation.pairs import Values, compare
from lab.evaluation.perceptual import Lite0
from lab.evaluation.prompt_accuracy import Proportion, accuracy
from lab.images import from_uint8, grid
from lab.randomness import normal
from lab.runtime import Runtime
from scripts.assembly import latent
from scripts.assembly.saved import Saved
from scripts.evaluation import heldout, paired
from scripts.evaluation.heldout import Pictures
from scripts.evaluation.paired import Outcome, Poll
from vae import quantizer
from vae.autoencoder import Autoencoder
from vae.posterior import Posterior
from vae.quantizer import Codebook, FiniteScalar
from vae.spectrum import radial_power
from vae.stage import VaeConfig

FITTED = 512  # training pictures that the linear codec is fitted on
SHOWN, ROWS, COLUMNS = 8, 4, 8  # pictures on the sheet, and rows and columns of interpolations

Sheets = dict[str, Image.Image]


@dataclass(frozen=True)
class Subject:
    """A trained autoencoder, in evaluation mode, and where it computes."""

    model: Autoencoder
    runtime: Runtime

    @torch.no_grad()
    def encode(self, images: Tensor) -> Posterior:
        """Give the posterior of (b, 3, H, W) images, float32 on the device."""
        with self.runtime.autocast():
            return self.model.encode(self.runtime.batch(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to (b, 3, H, W) images, float32 on the CPU."""
        with self.runtime.autocast():
            return self.model.decode(latents).float().cpu()

    def latents(self, pictures: Tensor, poll: Poll) -> Tensor:
        """Draw the latents (n, c, h, w) of (n, 3, H, W) bytes, on the CPU."""
        drawn: list[Tensor] = []
        for images in paired.chunks(pictures, "latents", poll):
            posterior, start = self.encode(images), paired.CHUNK * len(drawn)
            noise = normal(
                heldout.SEED, "posterior", range(start, start + len(images)), tuple(posterior.mean.shape[1:])
            )
            drawn.append(posterior.sample(noise.to(posterior.mean)).cpu())
        return torch.cat(drawn)


def everything(found: Saved, num: int, poll: Poll, *, with_networks: bool) -> tuple[dict[str, Any], Sheets]:
    """Measure an autoencoder.

    Args:
        found: its weights.
        num: held-out pictures, if there are as many.
        poll: called between chunks.
        with_networks: whether perceptual and Frechet distances are measured, which needs pretrained weights.

    Returns:
        JSON values, the same for the same checkpoint and machine, and sheets by name.

    Raises:
        Refused: the run trains no autoencoder, weights are not installed, or there are too few pictures.
    """
    experiment, config = found.experiment, latent.shape(found.experiment, found.run.path)
    judges = perceptual.judges() if with_networks else {}
    extractor = EfficientNetLite0() if with_networks else None
    runtime = runtimes.start(experiment.runtime)
    subject = Subject(latent.build(found, runtime), runtime)
    pictures = heldout.pictures(experiment.data, "heldout", num, least=NUM_GROUPS if with_networks else 2)
    methods = {
        "autoencoder": lambda images: subject.decode(subject.encode(images).mean),
        **_baselines(config, heldout.pictures(experiment.data, "train", FITTED)),
    }

    def measure(made: Tensor, _: Tensor, wanted: Tensor) -> Values:
        return compare(made, wanted, judges)

    images = pictures.images
    outcomes = {name: paired.outcome(name, each, images, images, measure, poll) for name, each in methods.items()}
    latents = subject.latents(images, poll)
    figures: dict[str, Any] = {
        "origin": dict(found.origin),
        "pictures": pictures.facts,
        "methods": {name: made.figures() for name, made in outcomes.items()},
        "above": {
            name: outcomes["autoencoder"].above(made) for name, made in outcomes.items() if name != "autoencoder"
        },
        "latent": _anatomy(subject.model, latents),
    }
    if extractor is not None:
        made = {"autoencoder": outcomes["autoencoder"].images}
        trained = isinstance(config.loss.perceptual, Lite0)
        notes = ("the perceptual loss was trained with this network",) if trained else ()
        figures["distances"] = paired.distances(made, images, extractor, notes)["autoencoder"]
    if isinstance(experiment.data, ShapesConfig):
        figures["attributes"] = _attributes(outcomes, pictures)
    return figures, {"pairs": _sheet(outcomes, pictures), "between": _interpolations(subject, pictures)}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal."""
    rows = ["", *paired.table(figures["methods"]), *paired.gaps(figures["above"])]
    rows += paired.told("autoencoder", figures.get("distances", []))
    for name, shares in figures.get("attributes", {}).items():
        parts = "  ".join(f"{part} {share['value']:.3f}" for part, share in shares.items())
        rows.append(f"read from the {name}: {parts}  n {shares['right']['n']}")
    kind = figures["latent"]
    shape = " x ".join(map(str, kind["shape"]))
    rows.append(f"latent {shape}: each number stands for {kind['compression']:g} of the picture")
    for channel, (mean, std) in enumerate(zip(kind["mean"], kind["std"], strict=True)):
        rows.append(f"  channel {channel}: mean {mean:+.3f}, standard deviation {std:.3f}")
    rows.append(f"  power by cycles per side (white: 1): {'  '.join(f'{p:.2f}' for p in kind['spectrum'])}")
    if "codes" in kind:
        rows.append("  codes: {used} of {num_codes} used, perplexity {perplexity:.1f}".format(**kind["codes"]))
    return "\n".join(rows)


def _baselines(config: VaeConfig, fitted: Pictures) -> dict[str, paired.Images]:
    """The thumbnail and the linear codec with no more numbers than the latent."""
    factor, channels = config.autoencoder.factor, config.autoencoder.latent.channels
    side = baselines.thumbnail_side(fitted.images.shape[-1], factor, channels)
    return {
        f"thumbnail {side} x {side}": lambda images: baselines.thumbnail(images, side),
        "linear codec": baselines.linear_codec(fitted.images, factor, channels),
    }


def _anatomy(model: Autoencoder, latents: Tensor) -> dict[str, Any]:
    """Scale, spectrum and use of codes."""
    kind, shape = model.latent, list(latents.shape[1:])
    found = {
        "shape": shape,
        "compression": 3 * model.config.factor**2 / shape[0],
        "mean": latents.double().mean(dim=(0, 2, 3)).tolist(),
        "std": latents.double().std(dim=(0, 2, 3)).tolist(),
        "spectrum": radial_power(latents).tolist(),
    }
    if isinstance(kind, Codebook | FiniteScalar):
        found["codes"] = asdict(quantizer.use(latents, kind))
    return found


def _attributes(outcomes: Mapping[str, Outcome], pictures: Pictures) -> dict[str, Any]:
    """What the verifier of the Shapes world reads from originals and from what each method made of them."""
    subjects = {"originals": pictures.images, **{name: made.images for name, made in outcomes.items()}}
    found = {}
    for name, images in subjects.items():
        shares = accuracy(from_uint8(images), pictures.captions)
        parts = [share for part, share in shares.items() if part not in ("right", "readable")]
        right, n = sum(round(share.value * share.n) for share in parts), sum(share.n for share in parts)
        found[name] = {"all attributes": asdict(Proportion(right / n, *wilson(right, n), n))} | {
            part: asdict(share) for part, share in shares.items()
        }
    return found


def _sheet(outcomes: Mapping[str, Outcome], pictures: Pictures) -> Image.Image:
    """Originals, what each method makes of them, and how far the autoencoder is off, on grey."""
    wanted = from_uint8(pictures.images[:SHOWN])
    made = {name: from_uint8(outcome.images[:SHOWN]) for name, outcome in outcomes.items()}
    columns = {"original": wanted, **made, "autoencoder - original": made["autoencoder"] - wanted}
    images = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    return grid(images, [*columns] * len(wanted), columns=len(columns))


def _interpolations(subject: Subject, pictures: Pictures) -> Image.Image:
    """Straight lines between the latents of neighbouring pictures."""
    ends = subject.encode(from_uint8(pictures.images[: 2 * ROWS])).mean
    ends = ends[: len(ends) // 2 * 2]
    shares = torch.linspace(0, 1, COLUMNS).tolist()
    between = [
        torch.lerp(first, last, share) for first, last in zip(ends[::2], ends[1::2], strict=True) for share in shares
    ]
    return grid(subject.decode(torch.stack(between)), columns=COLUMNS)
