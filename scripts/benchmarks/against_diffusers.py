"""Our pipeline beside diffusers' scheduler loop around the same network.

Their side is the loop of their own pipelines: prompts, noise, ``set_timesteps``, one pass for both predictions of
guidance, ``step``, decoding. Their scheduler gets a table of 1,000 levels of our schedule, in exact values, and the
network's own output; the angles that our network wants are looked up, so nothing of ours runs inside their loop.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffusion.condition import stack
from diffusion.pipeline import Pipeline, Request, SamplingConfig
from diffusion.samplers import trailing_times
from diffusion.schedule import Schedule, angle
from lab.errors import Refused
from lab.randomness import key, standard_normal
from scripts.assembly import drawing
from scripts.benchmarks.subject import PROMPTS, subject
from scripts.benchmarks.timing import alternating, met, ratio

TABLE = 1000
TOLERANCE = 1e-4
AS_FAST, FASTER = 0.98, 1.15
THEIR_DEFAULT = 50  # steps
RECOMMENDED = {"sampler": "unipc_2", "steps": 10, "spacing": "tangent"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULERS = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}


class Theirs:
    """diffusers' way from prompts to images with our network.

    Args:
        pipeline: whose network, text encoder and codec are used.
        sampling: whose sampler (ddim or dpmpp_2m), steps and guidance are used.

    Raises:
        Refused: diffusers is not installed, or knows no such schedule or parameterization.
    """

    def __init__(self, pipeline: Pipeline, sampling: SamplingConfig) -> None:
        self.pipeline, self.sampling = pipeline, sampling
        denoiser = pipeline.model.denoiser
        kind = getattr(denoiser.parameterization, "kind", "")
        if kind not in PREDICTIONS:
            raise Refused(f"diffusers' schedulers know no parameterization {kind}: use one of {', '.join(PREDICTIONS)}")
        self.scheduler = _scheduler(denoiser.schedule, sampling.sampler, PREDICTIONS[kind])
        times = torch.arange(1, TABLE + 1, dtype=torch.float64) / TABLE
        self.angles = angle(*denoiser.schedule(times)).float().to(pipeline.runtime.device)

    def draw(self, prompts: Sequence[str], noise: Tensor | None = None) -> Tensor:
        """Draw one image (3, H, W) per prompt from noise, their own if none is given."""
        pipeline, scale = self.pipeline, self.sampling.guidance
        model, runtime = pipeline.model, pipeline.runtime
        side = pipeline.size // pipeline.codec.factor
        with torch.no_grad(), runtime.autocast():
            if noise is None:
                generator = torch.Generator().manual_seed(0)
                noise = torch.randn(len(prompts), pipeline.codec.channels, side, side, generator=generator)
            cond = model.encode(prompts)
            if scale != 1:
                cond = stack(cond, model.encode([""] * len(prompts)))
            self.scheduler.set_timesteps(self.sampling.steps)
            x = runtime.batch(noise) * self.scheduler.init_noise_sigma
            for t in self.scheduler.timesteps:
                given = x if scale == 1 else torch.cat([x, x])
                output = model.denoiser.network(given, self.angles[int(t)].expand(len(given)), cond).to(x.dtype)
                if scale != 1:
                    wanted, null = output.chunk(2)
                    output = null + scale * (wanted - null)
                x = self.scheduler.step(output, t, x, return_dict=False)[0]
            return pipeline.codec.decode(x).float().cpu()


def _scheduler(schedule: Schedule, sampler: str, prediction: str) -> Any:
    """Their scheduler of a sampler, over a table of our schedule."""
    try:
        from diffusers import schedulers
    except ModuleNotFoundError as error:
        raise Refused("diffusers is not installed: pip install 'diffusers>=0.42'") from error
    alpha, sigma = schedule(torch.arange(1, TABLE + 1, dtype=torch.float64) / TABLE)
    if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)):
        raise Refused("diffusers' DDIM needs a variance-preserving schedule: use cosine, linear or sigmoid")
    made = getattr(schedulers, SCHEDULERS[sampler])(
        num_train_timesteps=TABLE,
        prediction_type=prediction,
        timestep_spacing="trailing",
        **({"clip_sample": False} if sampler == "ddim" else {}),
    )
    made.alphas_cumprod = (alpha**2).float()
    return made


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    pipeline, experiment = subject(options)
    runtime = pipeline.runtime
    exact = replace(pipeline, runtime=replace(runtime, precision="fp32"))
    times = trailing_times(options.steps, TABLE).tolist()  # given, since theirs begins at t = 1 whatever is predicted
    shared = {"steps": options.steps, "spacing": "given", "times": times, "eta": 0.0, "chunk": options.batch}
    print(f"batch {options.batch}; {runtime.device.type}, {runtime.precision}, {torch.get_num_threads()} threads")
    for sampler, scheduler in SCHEDULERS.items():
        sampling = drawing.sampling(experiment, {"sampler": sampler, **shared})
        apart = distance(exact, sampling)
        bf16 = f"; in {runtime.precision} {distance(pipeline, sampling):.1e}" if runtime.precision != "fp32" else ""
        print(f"\n{sampler} and {scheduler}, {options.steps} steps, guidance {sampling.guidance:g}")
        print(f"largest difference of x0 in fp32: {apart:.1e}{bf16}; {met(apart, TOLERANCE, at_least=False)}")
        _race(pipeline, sampling, Theirs(pipeline, sampling), options.repeats, AS_FAST)
    ours = drawing.sampling(experiment, {"chunk": options.batch, **RECOMMENDED})
    default = ours.model_copy(update={"sampler": "ddim", "steps": THEIR_DEFAULT})
    print(f"\nours recommended ({ours.sampler} {ours.steps}, {ours.spacing}) and their DDIM of {THEIR_DEFAULT} steps")
    _race(pipeline, ours, Theirs(pipeline, default), options.repeats, FASTER)
    return 0


def distance(pipeline: Pipeline, sampling: SamplingConfig) -> float:
    """Give the largest difference between our pictures and theirs from the same noise."""
    requests = _requests(sampling.chunk)
    side = pipeline.size // pipeline.codec.factor
    shape = (pipeline.codec.channels, side, side)
    noise = torch.stack([standard_normal(key(0, "sample", request.number), shape) for request in requests])
    theirs = Theirs(pipeline, sampling).draw([request.prompt for request in requests], noise)
    ours = torch.cat(list(pipeline.draw(requests, 0, sampling)))
    return (ours - theirs).abs().max().item()


def _race(pipeline: Pipeline, sampling: SamplingConfig, theirs: Theirs, repeats: int, bar: float) -> None:
    """Let both draw in turn and print who is how fast."""
    requests = _requests(sampling.chunk)
    prompts = [request.prompt for request in requests]
    sides: dict[str, Callable[[], object]] = {
        "theirs": lambda: theirs.draw(prompts),
        "ours": lambda: list(pipeline.draw(requests, 0, sampling)),
    }
    seconds = alternating(sides, repeats, sampling.sampler)
    speeds = {name: len(requests) / median(each) for name, each in seconds.items()}
    print(f"images per second: ours {speeds['ours']:.2f}, theirs {speeds['theirs']:.2f}; ", end="")
    print(f"ratio {ratio(seconds['theirs'], seconds['ours'])}; ", end="")
    print(met(speeds["ours"] / speeds["theirs"], bar, at_least=True))


def _requests(num: int) -> list[Request]:
    return [Request(PROMPTS[k % len(PROMPTS)], k) for k in range(num)]
