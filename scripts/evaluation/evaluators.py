"""What is measured of the averaged model while a run trains: the same images, prompts and noise every time."""

from collections.abc import Mapping

import torch
from torch import nn

from diffusion.pipeline import Request
from diffusion.stage import DiffusionStage
from lab.data.loader import Loader
from lab.data.shapes import ShapesConfig, prompts
from lab.data.sources import AnyData, source
from lab.data.split import Split
from lab.errors import Refused
from lab.evaluation.intervals import mean
from lab.evaluation.prompt_accuracy import accuracy
from lab.experiment import EvaluateConfig
from lab.images import from_uint8, to_uint8
from lab.training.observer import Evaluator

SEED = 1  # of prompts, images and noise that are the same in every run
LEVELS = 8  # noise levels of the grid
CHUNK = 8  # images per pass, without gradients: less memory than a step takes
SIDES: tuple[Split, ...] = ("train", "heldout")


def evaluators(config: EvaluateConfig, data: AnyData, stage: DiffusionStage) -> list[Evaluator]:
    """Give what is measured on a run's data."""
    if not config.every_steps:
        return []
    found: list[Evaluator] = [LevelLoss(config, data, stage)]
    return [PromptAccuracy(config, stage), *found] if isinstance(data, ShapesConfig) else found


class PromptAccuracy:
    """The share of prompts that the model obeys, on fixed prompts and noise.

    Args:
        config: how many prompts of which kinds, and how often.
        stage: draws the images.
    """

    def __init__(self, config: EvaluateConfig, stage: DiffusionStage) -> None:
        self.every_steps = config.every_steps
        self.stage = stage
        self.prompts = {kind: prompts(kind, config.num, SEED) for kind in config.kinds}

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Give accuracy/<kind> and its attributes."""
        figures: dict[str, float] = {}
        for kind, texts in self.prompts.items():
            requests = [Request(text, number) for number, text in enumerate(texts)]
            chunks = self.stage.pipeline(model).draw(requests, 0, self.stage.config.sampling)
            found = accuracy((image for chunk in chunks for image in from_uint8(to_uint8(chunk))), texts)
            figures |= {f"accuracy/{kind}/{name}": share.value for name, share in found.items()}
        return figures


class LevelLoss:
    """The loss on a fixed grid of images, noise and noise levels, of images to train on and of held-out ones.

    Their difference is what the model knows by heart. On the Shapes, held out are combinations of colour and shape.

    Args:
        config: how many images of each side, and how often.
        data: from which they are.
        stage: whose loss it is.
    """

    def __init__(self, config: EvaluateConfig, data: AnyData, stage: DiffusionStage) -> None:
        self.every_steps, self.num = config.every_steps, config.num
        self.stage = stage
        self.loaders: dict[str, Loader] = {}
        for side in SIDES:
            try:
                self.loaders[side] = Loader(source(data, side), SEED)
            except Refused:  # nothing is held out
                continue

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Give loss/<side>, half of its 95 % interval, and loss/<side>/logsnr <level>, from noise or from data on."""
        levels = self.stage.logsnr_of_levels(LEVELS)
        figures: dict[str, float] = {}
        for side, loader in self.loaders.items():
            losses = self.losses(model, loader)
            if len(losses) > 1:
                whole = mean(losses.mean(dim=1).tolist())
                figures |= {f"loss/{side}": whole.value, f"loss/{side}/half_width": whole.high - whole.value}
            by_level = zip(levels, losses.mean(dim=0).tolist(), strict=True)
            figures |= {f"loss/{side}/logsnr {level:+.2f}": loss for level, loss in by_level}
        return figures

    @torch.no_grad()
    def losses(self, model: nn.Module, loader: Loader) -> torch.Tensor:
        """Give the losses (n, LEVELS) of a side's first images, each of them once."""
        runtime, rows = self.stage.runtime, []
        num = min(self.num, loader.source.num or self.num)
        for start in range(0, num, CHUNK):
            batch = loader.batch(range(start, min(start + CHUNK, num)))
            with runtime.autocast():
                rows.append(
                    self.stage.losses_by_level(model, batch.with_images(runtime.batch(batch.images)), LEVELS).cpu()
                )
        return torch.cat(rows).double()
