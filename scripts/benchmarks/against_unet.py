"""Our network beside diffusers' ``UNet2DConditionModel``: training steps on the same images, tokens and mask.

Two comparisons. With the *same settings* (widths, blocks per level on the way down, attention, heads, width of the
text) theirs has more blocks: one more per level on the way up, and at the coarsest level those of both ways. With the
*same work* ours is given at least as many blocks as theirs at every level; where convolutions take the time and both
sides call the same library for them, that ratio is near 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.condition import Cond
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNet, UNetConfig
from lab import runtime as runtimes
from lab.errors import Refused
from lab.layers import GROUP_WIDTH
from lab.runtime import Runtime
from scripts.assembly import assemble
from scripts.assembly.experiments import DiffusionExperiment
from scripts.benchmarks.timing import alternating, met, timed

BAR = 1.3
CHANNELS, TOKENS, REAL_TOKENS = 3, 32, 12
SIDE = 1536  # of the square matrices whose product gives the machine's rate


@dataclass(frozen=True)
class Side:
    """A network, ready to make training steps.

    Attributes:
        name: of the side.
        parameters: how many.
        flops: of one step's passes, forward and backward.
        step: makes one step: loss, gradients, clipping, AdamW.
    """

    name: str
    parameters: int
    flops: float
    step: Callable[[], None]


def compare(experiment: DiffusionExperiment, repeats: int) -> None:
    """Print both comparisons.

    Args:
        experiment: completed; gives the network, the size of its images, the micro-batch and the runtime.
        repeats: measured steps of each side.

    Raises:
        Refused: diffusers is not installed.
    """
    runtime, config = runtimes.start(experiment.runtime), experiment.stage.unet
    rate, batch = matmul_rate(runtime), experiment.train.windows()[0]
    width = cast(TextToImage, assemble.stage(experiment, runtime).players["model"]).text.width
    print(f"\nbeside diffusers' UNet2DConditionModel, batch {batch}; products of matrices reach {rate / 1e9:.0f} GF/s")
    for name, ours_config in (("same settings", config), ("same work", as_much_work(config))):
        size = experiment.data.size
        sides = [
            _side("ours", ours(ours_config, width), size, batch, width, runtime),
            _side("theirs", theirs(config, size, width), size, batch, width, runtime),
        ]
        times = alternating({side.name: side.step for side in sides}, repeats, name)
        seconds = {side.name: median(times[side.name]) for side in sides}
        for side in sides:
            reached = side.flops / seconds[side.name]
            print(
                f"{name}, {side.name}: {batch / seconds[side.name]:.1f} images per second, "
                f"{side.parameters / 1e6:.2f}M parameters, {side.flops / batch / 1e9:.2f} GF an image, "
                f"{reached / 1e9:.0f} GF/s ({reached / rate:.0%} of the matrices' rate)"
            )
        ratio = seconds["theirs"] / seconds["ours"]
        bar = f"; {met(ratio, BAR, at_least=True)}" if ours_config is config else ""
        print(f"{name}: {ratio:.3f} of their images per second{bar}")


def as_much_work(config: UNetConfig) -> UNetConfig:
    """Give ours at least as many blocks as theirs has at every level."""
    return config.model_copy(update={"depth": config.depth + 1, "middle": 2 * config.depth + 3})


def ours(config: UNetConfig, width: int) -> Callable[[Tensor, Tensor, Cond], Tensor]:
    """Build our network."""
    return UNet(config, CHANNELS, width, width)


class Theirs(nn.Module):
    """Their network between our patch stem and head: (x, angle, cond) -> output.

    Args:
        network: a ``UNet2DConditionModel``.
        patch: side of the pixel blocks that are folded into channels.
    """

    def __init__(self, network: Any, patch: int) -> None:
        super().__init__()
        self.network = network
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)

    def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
        """Predict."""
        output = self.network(
            self.fold(x), 600 * angle, encoder_hidden_states=cond.tokens, encoder_attention_mask=cond.mask
        )
        unfolded: Tensor = self.unfold(output.sample)
        return unfolded


def theirs(config: UNetConfig, size: int, width: int) -> Theirs:
    """Build theirs with the same settings.

    Raises:
        Refused: diffusers is not installed.
    """
    try:
        from diffusers import UNet2DConditionModel
    except ModuleNotFoundError as error:
        raise Refused(
            "diffusers is not installed: pip install 'diffusers>=0.42', or leave it out by --alone"
        ) from error
    levels = range(len(config.widths))
    folded = CHANNELS * config.patch**2
    network = UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=size // config.patch,
        in_channels=folded,
        out_channels=folded,
        block_out_channels=config.widths,
        layers_per_block=config.depth,
        down_block_types=tuple("CrossAttnDownBlock2D" if i in config.attention else "DownBlock2D" for i in levels),
        mid_block_type="UNetMidBlock2DCrossAttn" if levels[-1] in config.attention else "UNetMidBlock2D",
        up_block_types=tuple("CrossAttnUpBlock2D" if i in config.attention else "UpBlock2D" for i in reversed(levels)),
        cross_attention_dim=width,
        attention_head_dim=tuple(width // config.head_width for width in config.widths),  # their name for heads
        norm_num_groups=config.widths[0] // GROUP_WIDTH,
    )
    return Theirs(network, config.patch)


def matmul_rate(runtime: Runtime) -> float:
    """Measure how many operations per second large products of matrices reach in the run's precision."""
    left, right = (torch.randn(SIDE, SIDE, device=runtime.device) for _ in range(2))

    def multiply() -> None:
        with runtime.autocast():
            left @ right

    multiply()
    return 2 * SIDE**3 / median(timed(multiply) for _ in range(9))


def _side(name: str, network: Any, size: int, batch: int, width: int, runtime: Runtime) -> Side:
    network = runtime.place(network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    x = runtime.batch(torch.randn(batch, CHANNELS, size, size))
    angle = torch.rand(batch, device=x.device)
    mask = (torch.arange(TOKENS, device=x.device) < REAL_TOKENS).expand(batch, TOKENS)
    cond = Cond(torch.randn(batch, TOKENS, width, device=x.device), mask, torch.randn(batch, width, device=x.device))

    def passes() -> None:
        with runtime.autocast():
            loss = (network(x, angle, cond).float() - x).square().mean()
        loss.backward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        passes()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        passes()
    return Side(name, sum(p.numel() for p in network.parameters()), counter.get_total_flops(), step)
