"""Prompts to images.

Image j of any prompt starts from ``key(seed, "sample", j)`` and draws all its later noise from the same generator. The
network, the text encoder and the codec always run at one fixed chunk size, the last chunk padded, so an image does not
depend on what it was asked for together with: matrix products round differently at different batch sizes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion import samplers
from diffusion.denoiser import Denoise
from diffusion.framing import numbers
from diffusion.guidance import GuidanceConfig, guide
from diffusion.optimal_variance import OptimalVariance
from diffusion.parameterization import Parameterization
from diffusion.samplers import Churn, NoiseLike
from diffusion.samplers.spacing import LOGSNR_LIMITS
from diffusion.schedule import Linear, Quadratic, Schedule
from diffusion.text_to_image import TextToImage
from lab.config import Config
from lab.data.source import Frame
from lab.errors import OutOfMemory, Refused
from lab.images import Shape
from lab.randomness import key, standard_normal
from lab.runtime import Runtime
from vae.codec import Codec

DRAWING = "2"
"""Raise when the same weights, settings and seed come to draw other pictures: a part of every recipe, so that what was
drawn or measured before is not taken for what would be now."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class SamplingConfig(Config):
    """How images are drawn; together with prompt, seed and number it determines an image.

    Attributes:
        sampler: one of diffusion/samplers; "unipc_2" and "unipc_3" are ``unipc`` with that order, "lms" has order 4.
        steps: number of steps, one denoiser call each; "heun" makes two in each but the last.
        spacing: where the steps lie; see diffusion/samplers/spacing.py. "given" takes them from ``times``. A walk that
            does not start at t = 1 ("leading", and "karras" and "logsnr" where the schedule goes below their limit)
            starts from noise alone all the same.
        guidance: classifier-free scale; 1 is off.
        guide: how the scale is used.
        eta: of ddim, dpmpp_2m and dpmpp_3m: 0 for none, 1 for all of the noise of the reverse SDE.
        variance: of ddpm: "upper", "lower", or "optimal", which is measured once from a trained run.
        churn: of euler and heun: noise added and removed again, shared out over the steps (EDM's S_churn).
        logsnr_limits: of the spacings karras and logsnr: between which log-SNR they lie before the step to t = 0.
        times: of the spacing given: ``steps`` + 1 of them, from at most 1 down to 0.
        chunk: images per pass of the network; a part of the recipe, since rounding depends on it. Halved where memory
            runs out (``within_memory``).
    """

    sampler: Literal[
        "ddim",
        "ddpm",
        "euler",
        "euler_ancestral",
        "heun",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc_2",
        "unipc_3",
        "plms",
        "lms",
    ] = "ddim"
    steps: int = Field(20, ge=1)
    spacing: Literal["uniform", "trailing", "leading", "quadratic", "karras", "logsnr", "tangent", "given"] = "uniform"
    guidance: float = 3.0
    guide: GuidanceConfig = GuidanceConfig()
    eta: float = Field(0.0, ge=0, le=1)
    variance: Literal["upper", "lower", "optimal"] = "upper"
    churn: float = Field(0.0, ge=0)
    logsnr_limits: tuple[float, float] = LOGSNR_LIMITS
    times: tuple[float, ...] = ()
    chunk: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.guide.check_sampler(self.sampler, self.eta)
        for setting, choice, takers in TAKERS:
            default, value = type(self).model_fields[setting].default, getattr(self, setting)
            if value != default and getattr(self, choice) not in takers:
                raise ValueError(
                    f"{setting} does nothing with {choice} {getattr(self, choice)}: set {setting} to "
                    f"{list(default) if isinstance(default, tuple) else default}, or {choice} to {' or '.join(takers)}"
                )
        low, high = self.logsnr_limits
        if not low < high:
            raise ValueError(f"logsnr_limits must increase, from much noise to little, got {[low, high]}")
        if self.spacing == "given":
            self._check_times()
        return self

    def _check_times(self) -> None:
        times = self.times
        if len(times) < 2 or times[0] > 1 or times[-1] != 0 or sorted(set(times), reverse=True) != list(times):
            raise ValueError(f"times must decrease from at most 1 to 0 with spacing given, got {list(times)}")
        if len(times) != self.steps + 1:
            raise ValueError(f"{len(times)} times are {len(times) - 1} steps: set steps to {len(times) - 1}")


# Which setting belongs to which choices of sampler or spacing.
TAKERS = (
    ("eta", "sampler", ("ddim", "dpmpp_2m", "dpmpp_3m")),
    ("variance", "sampler", ("ddpm",)),
    ("churn", "sampler", ("euler", "heun")),
    ("logsnr_limits", "spacing", ("karras", "logsnr")),
    ("times", "spacing", ("given",)),
)

Sampler = Callable[[Denoise, Tensor, Tensor, Schedule], Tensor]
"""(denoise, x (b, c, h, w), times (n + 1,), schedule) -> (b, c, h, w); its settings already inside."""

Poll = Callable[[], None]
"""Called often during long work; raises to end it."""

WITHOUT_SETTINGS: dict[str, Sampler] = {
    "unipc_2": samplers.unipc,
    "unipc_3": partial(samplers.unipc, order=3),
    "plms": samplers.plms,
    "lms": samplers.lms,
}


def sampler_of(sampling: SamplingConfig, noise: NoiseLike, variance: OptimalVariance | None = None) -> Sampler:
    """Bind a sampler to its settings, to where its noise comes from, and to the optimal variance if it asks for it.

    Raises:
        Refused: it asks for it, and there is none.
    """
    match sampling.sampler:
        case "ddim":
            return partial(samplers.ddim, eta=sampling.eta, noise=noise)
        case "ddpm":
            return partial(samplers.ddpm, noise=noise, variance=_variance_of(sampling, variance))
        case "euler":
            return partial(samplers.euler, churn=Churn(sampling.churn), noise=noise)
        case "euler_ancestral":
            return partial(samplers.euler_ancestral, noise=noise)
        case "heun":
            return partial(samplers.heun, churn=Churn(sampling.churn), noise=noise)
        case "dpmpp_2m":
            return partial(samplers.dpmpp_2m, eta=sampling.eta, noise=noise)
        case "dpmpp_3m":
            return partial(samplers.dpmpp_3m, eta=sampling.eta, noise=noise)
        case name:
            return WITHOUT_SETTINGS[name]


def _variance_of(
    sampling: SamplingConfig, measured: OptimalVariance | None
) -> Literal["lower", "upper"] | OptimalVariance:
    if sampling.variance != "optimal":
        return sampling.variance
    if measured is None:
        raise Refused(
            "variance optimal needs a measurement: give the pipeline one (diffusion.optimal_variance.measure)"
        )
    return measured


def times_of(sampling: SamplingConfig, schedule: Schedule, parameterization: Parameterization) -> Tensor:
    """Give the times of a walk: (steps + 1,) float64, decreasing to 0.

    All but given ones are shrunk to begin where the prediction is of use (``Parameterization.signal``).

    Raises:
        Refused: the schedule cannot be spaced so: its table is shorter than the walk, or ends within the limits.
    """
    times, signal = _spaced(sampling, schedule), parameterization.signal
    if signal == 0 or sampling.spacing == "given":
        return times
    level = torch.tensor(2 * math.log(signal) - math.log1p(-(signal**2)), dtype=times.dtype)
    return times * (schedule.t_of(level) / times[0]).clamp(max=1)


def _spaced(sampling: SamplingConfig, schedule: Schedule) -> Tensor:
    """Give the times that a spacing says.

    Raises:
        Refused: the schedule cannot be spaced so: its table is shorter than the walk, or ends within the limits.
    """
    steps, limits = sampling.steps, sampling.logsnr_limits
    table = schedule.steps if isinstance(schedule, Linear | Quadratic) else 1000
    try:
        match sampling.spacing:
            case "uniform":
                return samplers.uniform_times(steps)
            case "trailing":
                return samplers.trailing_times(steps, table)
            case "leading":
                return samplers.leading_times(steps, table)
            case "quadratic":
                return samplers.quadratic_times(steps)
            case "karras":
                return samplers.karras_times(steps, schedule, limits)
            case "logsnr":
                return samplers.logsnr_times(steps, schedule, limits)
            case "tangent":
                return samplers.tangent_times(steps, schedule)
            case "given":
                return torch.tensor(sampling.times, dtype=torch.float64)
    except ValueError as error:
        raise Refused(f"spacing {sampling.spacing}: {error}") from None


class Request(NamedTuple):
    """One image that is wanted.

    Attributes:
        prompt: what it shows; "" for anything.
        number: j, which of the images of this prompt and seed.
        negative: what to move away from; "" for the null condition.
    """

    prompt: str
    number: int = 0
    negative: str = ""


@dataclass(frozen=True)
class Pipeline:
    """From prompts to images, with fixed weights.

    Attributes:
        model: in eval mode, on the runtime's device.
        codec: from latents to images.
        size: side in pixels of the squares that it was trained to draw.
        runtime: the precision that the network runs in.
        offset_noise: the share of noise that is constant over a channel, as in training.
        variance: what variance "optimal" is.
        shape: of the images; ``None`` for squares of ``size``.
    """

    model: TextToImage
    codec: Codec
    size: int
    runtime: Runtime
    offset_noise: float = 0.0
    variance: OptimalVariance | None = None
    shape: Shape | None = None

    @property
    def drawn(self) -> Shape:
        """The shape of the images."""
        return self.shape or (self.size, self.size)

    def draw(
        self, requests: Sequence[Request], seed: int, sampling: SamplingConfig, poll: Poll = lambda: None
    ) -> Iterator[Tensor]:
        """Draw images, chunk by chunk.

        Args:
            requests: what is wanted.
            seed: of the drawing.
            sampling: how.
            poll: called before every call of the denoiser; what it raises ends the drawing, and the chunk in work is
                dropped.

        Yields:
            (k, 3, H, W) float32 on the CPU, not clamped, k at most ``sampling.chunk``, in the order of the requests.
        """
        chunk = sampling.chunk
        for start in range(0, len(requests), chunk):
            wanted = list(requests[start : start + chunk])
            with torch.no_grad(), self.runtime.autocast():
                images = self._chunk(wanted + wanted[-1:] * (chunk - len(wanted)), seed, sampling, poll)
            yield images[: len(wanted)].float().cpu()

    def _chunk(self, requests: Sequence[Request], seed: int, sampling: SamplingConfig, poll: Poll) -> Tensor:
        noise = partial(self.noise, [key(seed, "sample", request.number) for request in requests])
        schedule = self.model.denoiser.schedule
        times = times_of(sampling, schedule, self.model.denoiser.parameterization)
        x = self.start(noise, len(requests), times)
        guided = self.guided(requests, sampling, times)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            poll()
            return guided(x_t, t)

        return self.codec.decode(sampler_of(sampling, noise, self.variance)(denoise, x, times, schedule))

    def noise(self, streams: Sequence[np.random.Generator], like: Tensor) -> Tensor:
        """Draw the noise of a step, or of the start, (b, c, h, w): one stream per image."""
        drawn = torch.stack([standard_normal(stream, tuple(like.shape[1:])) for stream in streams])
        if self.offset_noise > 0:
            offsets = [standard_normal(stream, (like.shape[1], 1, 1)) for stream in streams]
            drawn = drawn + self.offset_noise * torch.stack(offsets)
        return drawn.to(like)

    def start(self, noise: NoiseLike, count: int, times: Tensor) -> Tensor:
        """Give the states (count, c, h, w) that walks over such times start from."""
        height, width = (side // self.codec.factor for side in self.drawn)
        _, sigma = self.model.denoiser.schedule(times[:1])
        return self.runtime.batch(sigma.item() * noise(torch.empty(count, self.codec.channels, height, width)))

    def guided(self, requests: Sequence[Request], sampling: SamplingConfig, times: Tensor) -> Denoise:
        """Bind the prompts of one chunk and their guidance over such times to the model."""
        num = len(requests)
        frames = None if self.shape is None else numbers([Frame(*self.shape)] * num, num, self.size)
        cond = self.model.encode([request.prompt for request in requests], frames)
        null = partial(self.model.encode, [request.negative for request in requests], frames)
        return guide(self.model.denoiser, cond, null, sampling.guidance, times, sampling.guide)


def within_memory(act: Callable[[SamplingConfig], _Result], sampling: SamplingConfig) -> _Result:
    """Do something that draws, and again with half the chunk whenever the memory of the device runs out.

    What is drawn then is what the smaller chunk draws, which is the one that ``act`` is told.

    Args:
        act: draws with the settings that it is given; called again, it goes on from what it has kept.
        sampling: to begin with.

    Raises:
        OutOfMemory: even a chunk of 1 is too much.
    """
    while True:
        try:
            return act(sampling)
        except torch.OutOfMemoryError as error:
            if sampling.chunk == 1:
                raise OutOfMemory(
                    "out of memory with a single image per pass (chunk 1): "
                    "stop what else uses the device, or take one with more memory"
                ) from error
        # Only here, after the handler, the tensors of the failed pass are free.
        half = sampling.chunk // 2
        _log.warning("out of memory with chunk %d: going on with chunk %d", sampling.chunk, half)
        sampling = sampling.model_copy(update={"chunk": half})
