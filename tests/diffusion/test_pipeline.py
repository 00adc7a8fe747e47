"""Prompts to images: an image is a function of its recipe and of nothing else, bit for bit."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffusion import samplers
from diffusion.denoiser import Denoise
from diffusion.guidance import GuidanceConfig, classifier_free
from diffusion.optimal_variance import OptimalVariance
from diffusion.parameterization import Eps, Parameterization, V
from diffusion.pipeline import Pipeline, Request, Sampler, SamplingConfig, sampler_of, times_of, within_memory
from diffusion.samplers import Churn, NoiseLike
from diffusion.schedule import Cosine, Flow, Karras, Linear, Quadratic, Schedule
from diffusion.text_to_image import TextToImage
from lab.errors import OutOfMemory, Refused
from lab.images import save_png, to_uint8
from lab.randomness import key, standard_normal
from lab.runtime import Runtime
from vae.codec import Pixels

Tiny = Callable[..., TextToImage]

PROMPTS = [
    "a red circle above a blue square",
    "a green ring",
    "two white crosses",
    "",
    "a blue ring",
    "a red square",
    "a white ring below",
    "two red circles",
]
REQUESTS = [Request(prompt, number, "a red ring" if number == 5 else "") for number, prompt in enumerate(PROMPTS)]
GUIDES: list[dict[str, object]] = [
    {"rule": {"kind": "apg", "radius": 0.5}},
    {"rule": {"kind": "cfg_zero_star"}},
    {"rule": {"kind": "cfg_plus_plus"}},
    {"interval": (-3.0, 3.0)},
    {"rescale": 0.7},
]
CPU = torch.device("cpu")


def draw(pipeline: Pipeline, requests: Sequence[Request], sampling: SamplingConfig, seed: int = 0) -> Tensor:
    return torch.cat(list(pipeline.draw(requests, seed, sampling)))


FP32, BF16, NHWC = Runtime(CPU), Runtime(CPU, "bf16"), Runtime(CPU, "bf16", channels_last=True)
CUDA = Runtime(torch.device("cuda"))
SAMPLERS: dict[str, dict[str, object]] = {
    "ddim": {},
    "ddpm": {"sampler": "ddpm"},
    "eta": {"eta": 0.7},
    "sde": {"sampler": "dpmpp_2m", "eta": 1.0, "steps": 3},
    "unipc": {"sampler": "unipc_3", "spacing": "logsnr", "steps": 3},
}
CASES = [
    *(pytest.param(FP32, name, seed, id=f"{name}-{seed}") for name in ("ddim", "ddpm") for seed in range(8)),
    *(pytest.param(FP32, name, 0, id=name) for name in ("eta", "sde", "unipc")),
    *(
        pytest.param(runtime, name, 0, id=f"{name}-{kind}", marks=() if name in ("ddim", "ddpm") else pytest.mark.slow)
        for runtime, kind in ((BF16, "bf16"), (NHWC, "nhwc"))
        for name in SAMPLERS
    ),
    *(
        pytest.param(Runtime(CUDA.device, *how), name, 0, id=f"{name}-{kind}", marks=pytest.mark.gpu)
        for kind, how in (("cuda", ()), ("cuda-bf16", ("bf16",)), ("cuda-nhwc", ("bf16", True)))
        for name in SAMPLERS
    ),
]


def png(image: Tensor, path: Path) -> bytes:
    save_png(path, image)
    return path.read_bytes()


@pytest.mark.parametrize(("runtime", "name", "seed"), CASES)
def test_an_image_does_not_depend_on_what_it_was_asked_for_with(
    runtime: Runtime, name: str, seed: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once, one by one, as 3 + 3 + 2, and in another order; the last chunk is padded in most of them."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # hundreds of files that nobody will miss
    pipeline = Pipeline(runtime.place(tiny()), Pixels(), 8, runtime)
    sampling = SamplingConfig.model_validate({"steps": 2, "chunk": 4, **SAMPLERS[name]})
    eight = draw(pipeline, REQUESTS, sampling, seed)
    files = [png(image, tmp_path / "eight.png") for image in eight]
    assert len(set(files)) == 8
    for parts in ([[k] for k in range(8)], [[0, 1, 2], [3, 4, 5], [6, 7]], [[4, 0, 6, 2, 7, 5, 1, 3]]):
        for part in parts:
            images = draw(pipeline, [REQUESTS[k] for k in part], sampling, seed)
            assert torch.equal(images, eight[part])
            assert [png(image, tmp_path / "part.png") for image in images] == [files[k] for k in part]


class Kept(Pixels):
    """Keeps the latents, in their own type, that are decoded."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return latents


@pytest.fixture
def default_type(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The type that latents are made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("default_type", "tolerance"),
    [(torch.float32, 1e-4), (torch.float64, 1e-12)],
    ids=["fp32", "fp64"],
    indirect=["default_type"],
)
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_another_chunk_is_rounding_alone(name: str, default_type: torch.dtype, tolerance: float, tiny: Tiny) -> None:
    model = tiny().to(default_type)
    requests = [request._replace(number=number) for number, request in enumerate(REQUESTS * 2)]
    latents, images = [], []
    for chunk in (1, 8):
        codec = Kept()
        sampling = SamplingConfig.model_validate({"steps": 5, "chunk": chunk, **SAMPLERS[name]})
        images.append(to_uint8(draw(Pipeline(model, codec, 8, FP32), requests, sampling)).int())
        latents.append(torch.cat(codec.latents))
    assert latents[0].dtype == default_type
    assert latents[0].shape == (16, 3, 8, 8)
    assert (latents[0] - latents[1]).abs().max() <= tolerance
    difference = (images[0] - images[1]).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() <= 1e-3 * difference.numel()


def from_numpy(seed: int, requests: Sequence[Request]) -> NoiseLike:
    """Draws image j's noise from NumPy's generator of its key, one number after the other."""
    streams = [key(seed, "sample", request.number) for request in requests]
    assert {type(stream) for stream in streams} == {np.random.Generator}
    return lambda like: torch.stack([standard_normal(stream, tuple(like.shape[1:])) for stream in streams])


Walk = Callable[[NoiseLike], Sampler]
WALKS: list[tuple[dict[str, object], Walk]] = [
    ({}, lambda noise: samplers.ddim),
    ({"eta": 0.7}, lambda noise: partial(samplers.ddim, eta=0.7, noise=noise)),
    ({"sampler": "ddpm"}, lambda noise: partial(samplers.ddpm, variance="upper", noise=noise)),
    ({"sampler": "ddpm", "variance": "lower"}, lambda noise: partial(samplers.ddim, eta=1.0, noise=noise)),
    ({"sampler": "euler"}, lambda noise: samplers.euler),
    ({"sampler": "euler", "churn": 2.0}, lambda noise: partial(samplers.euler, churn=Churn(2.0), noise=noise)),
    ({"sampler": "euler_ancestral"}, lambda noise: partial(samplers.euler_ancestral, noise=noise)),
    ({"sampler": "heun"}, lambda noise: samplers.heun),
    ({"sampler": "heun", "churn": 2.0}, lambda noise: partial(samplers.heun, churn=Churn(2.0), noise=noise)),
    ({"sampler": "dpmpp_2m"}, lambda noise: samplers.dpmpp_2m),
    ({"sampler": "dpmpp_2m", "eta": 1.0}, lambda noise: partial(samplers.dpmpp_2m, eta=1.0, noise=noise)),
    ({"sampler": "dpmpp_3m"}, lambda noise: samplers.dpmpp_3m),
    ({"sampler": "dpmpp_3m", "eta": 0.5}, lambda noise: partial(samplers.dpmpp_3m, eta=0.5, noise=noise)),
    ({"sampler": "unipc_2"}, lambda noise: partial(samplers.unipc, order=2)),
    ({"sampler": "unipc_3"}, lambda noise: partial(samplers.unipc, order=3)),
    ({"sampler": "plms"}, lambda noise: samplers.plms),
    ({"sampler": "lms"}, lambda noise: partial(samplers.lms, order=4)),
]


@pytest.mark.parametrize(("settings", "walk"), WALKS, ids=lambda value: None if callable(value) else str(value))
def test_an_image_is_its_noise_walked_to_data(settings: dict[str, object], walk: Walk, tiny: Tiny) -> None:
    """Guided from the negative prompt, or from the empty one; all noise comes from the image's own generator."""
    model = tiny()
    sampling = SamplingConfig.model_validate({"steps": 6, "guidance": 2.5, "chunk": 2, **settings})
    requests = [Request("a red circle", 5, "a ring"), Request("a green ring", 2)]
    images = draw(Pipeline(model, Pixels(), 8, FP32), requests, sampling, seed=9)
    cond, null = model.encode(["a red circle", "a green ring"]), model.encode(["a ring", ""])
    denoise, schedule = classifier_free(model.denoiser, cond, null, 2.5), model.denoiser.schedule
    times, noise = samplers.uniform_times(6), from_numpy(9, requests)
    start = schedule(times[:1])[1].item() * noise(torch.empty(2, 3, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(images, walk(noise)(denoise, start, times, schedule))


@pytest.mark.parametrize(
    "runtime", [FP32, NHWC, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=["cpu", "nhwc", "cuda"]
)
def test_noise_is_drawn_on_the_cpu_whatever_the_device(
    runtime: Runtime, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start and all later noise are NumPy's numbers bit for bit, so the same ones on every device."""
    given: list[Tensor] = []

    def listening(sampling: SamplingConfig, noise: NoiseLike, variance: object) -> Sampler:
        def walk(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
            given.extend([x, noise(x), noise(x)])
            return x

        return walk

    monkeypatch.setattr("diffusion.pipeline.sampler_of", listening)
    pipeline = Pipeline(runtime.place(tiny(schedule=Flow())), Pixels(), 8, runtime)
    draw(pipeline, REQUESTS, SamplingConfig(chunk=8), seed=3)
    noise, (start, *later) = from_numpy(3, REQUESTS), given
    assert start.device.type == runtime.device.type
    for tensor in (start, *later):  # sigma is 1 at the start
        assert torch.equal(tensor.cpu(), noise(start))


@pytest.mark.parametrize(
    ("name", "guide"),
    [("ddim", guide) for guide in GUIDES] + [(name, {}) for name in ("ddim", "ddpm", "heun", "unipc_3", "lms")],
    ids=str,
)
def test_times_lie_on_the_cpu_and_nothing_is_computed_between_devices(
    name: str, guide: dict[str, object], tiny: Tiny
) -> None:
    """On torch's device without numbers, which refuses to compute with those of the CPU, and to be looked at."""
    model, meta = tiny().to("meta"), torch.device("meta")
    steps = 4 if name in ("unipc_3", "lms") else 2  # so many that the method looks back as far as it does
    sampling = SamplingConfig.model_validate({"sampler": name, "steps": steps, "guidance": 2.0, "guide": guide})
    times = times_of(sampling, model.denoiser.schedule, model.denoiser.parameterization)
    denoise = Pipeline(model, Pixels(), 8, Runtime(meta)).guided([Request("a red circle")], sampling, times)
    heard: set[torch.device] = set()

    def listening(x_t: Tensor, t: Tensor) -> Tensor:
        heard.add(t.device)
        return denoise(x_t, t)

    walk = sampler_of(sampling, torch.randn_like)
    x = walk(listening, torch.empty(1, 3, 8, 8, device=meta), times, model.denoiser.schedule)
    assert (x.device, heard) == (meta, {CPU})


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_images_of_a_gpu_are_those_of_the_cpu_but_for_rounding(name: str, tiny: Tiny) -> None:
    sampling = SamplingConfig.model_validate({"steps": 5, "chunk": 8, **SAMPLERS[name]})
    pipelines = [Pipeline(runtime.place(tiny()), Pixels(), 8, runtime) for runtime in (FP32, CUDA)]
    one, other = (to_uint8(draw(pipeline, REQUESTS, sampling)).float() for pipeline in pipelines)
    assert (one - other).abs().mean() <= 2


def test_offset_noise_is_in_the_start_and_in_every_fresh_noise(tiny: Tiny) -> None:
    class Silent(torch.nn.Module):
        """Says x0 = 0, so that a state is sigma times what was drawn."""

        def forward(self, x: Tensor, angle: Tensor, cond: object) -> Tensor:
            return torch.zeros_like(x)

    model = tiny(parameterization={"kind": "x0"})
    model.denoiser.network = Silent()
    seen: list[Tensor] = []
    model.denoiser.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    requests = [Request("", number) for number in range(64)]
    list(Pipeline(model, Pixels(), 8, Runtime(CPU), 0.5).draw(requests, 0, SamplingConfig(steps=3, eta=1, chunk=64)))
    assert len(seen) == 3
    for state in seen:
        means = state[:64].mean(dim=(2, 3))
        within = (state[:64] - means[..., None, None]).var().item()
        assert means.var().item() / within == pytest.approx(0.5**2 + 1 / 64, rel=0.4)


def test_everything_in_the_recipe_changes_the_image(tiny: Tiny) -> None:
    measured = OptimalVariance(logsnr=(-5.0, 5.0), error=(0.2, 0.01), variance=0.3)
    pipeline = Pipeline(tiny(), Pixels(), 8, Runtime(CPU), variance=measured)
    base = SamplingConfig(steps=5, chunk=1)
    reference = draw(pipeline, [Request("a red circle")], base)
    others = [
        draw(pipeline, [Request("a blue circle")], base),
        draw(pipeline, [Request("a red circle", 1)], base),
        draw(pipeline, [Request("a red circle", 0, "a ring")], base),
        draw(pipeline, [Request("a red circle")], base, seed=1),
        *(
            draw(pipeline, [Request("a red circle")], base.model_copy(update=change))
            for change in (
                {"steps": 4},
                {"guidance": 1.0},
                {"eta": 0.5},
                {"sampler": "ddpm"},
                {"sampler": "ddpm", "variance": "lower"},
                {"sampler": "ddpm", "variance": "optimal"},
                *({"guide": GuidanceConfig.model_validate(changed)} for changed in GUIDES),
                {"sampler": "euler", "churn": 2.0},
                {"sampler": "heun"},
                {"sampler": "heun", "churn": 2.0},
                {"sampler": "dpmpp_2m", "eta": 0.5},
                {"sampler": "dpmpp_3m"},
                {"sampler": "dpmpp_3m", "eta": 0.5},
                {"sampler": "unipc_2"},
                {"sampler": "unipc_3"},
                {"sampler": "plms"},
                {"sampler": "lms"},
                {"spacing": "leading"},
                {"spacing": "quadratic"},
                {"spacing": "karras"},
                {"spacing": "tangent"},
                {"spacing": "karras", "logsnr_limits": (-5.0, 5.0)},
                {"spacing": "logsnr"},
                {"spacing": "logsnr", "logsnr_limits": (-5.0, 5.0)},
                {"spacing": "given", "times": (1.0, 0.5, 0.2, 0.0)},
            )
        ),
    ]
    for one, image in enumerate(others):
        assert not any(torch.allclose(image, other) for other in [reference, *others[:one]])


def test_images_come_in_order_on_the_cpu_and_not_clamped(tiny: Tiny) -> None:
    pipeline = Pipeline(tiny(), Pixels(), 8, Runtime(CPU, "bf16"))
    chunks = list(pipeline.draw(REQUESTS[:7], 0, SamplingConfig(steps=1, chunk=3, guidance=10)))
    assert [tuple(chunk.shape) for chunk in chunks] == [(3, 3, 8, 8), (3, 3, 8, 8), (1, 3, 8, 8)]
    images = torch.cat(chunks)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.abs().max() > 1
    assert list(pipeline.draw([], 0, SamplingConfig())) == []


def test_a_poll_comes_before_every_step_and_ends_the_drawing(tiny: Tiny) -> None:
    passes = []

    def poll() -> None:
        passes.append(len(images))
        if len(passes) == 5:
            raise InterruptedError

    images: list[Tensor] = []
    pipeline = Pipeline(tiny(), Pixels(), 8, Runtime(CPU))
    with pytest.raises(InterruptedError):
        images.extend(pipeline.draw(REQUESTS, 0, SamplingConfig(steps=3, chunk=2), poll))
    assert passes == [0, 0, 0, 1, 1]
    assert torch.equal(images[0], draw(pipeline, REQUESTS[:2], SamplingConfig(steps=3, chunk=2)))


def test_memory_is_free_again_before_half_the_chunk_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    chunks, kept = [], []

    def act(sampling: SamplingConfig) -> str:
        assert all(failed() is None for failed in kept)
        chunks.append(sampling.chunk)
        images = torch.empty(sampling.chunk)
        kept.append(weakref.ref(images))
        if sampling.chunk > 5:
            raise torch.OutOfMemoryError
        return sampling.sampler

    assert within_memory(act, SamplingConfig(sampler="lms", chunk=22)) == "lms"
    assert chunks == [22, 11, 5]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with chunk 22: going on with chunk 11",
        "out of memory with chunk 11: going on with chunk 5",
    ]


def test_one_image_that_is_too_much_is_told_with_the_remedy() -> None:
    def act(sampling: SamplingConfig) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemory, match=r"a single image per pass \(chunk 1\): stop what else uses the device"):
        within_memory(act, SamplingConfig(chunk=3))


def test_drawing_leaves_the_global_generator_alone(tiny: Tiny) -> None:
    before = torch.get_rng_state()
    draw(Pipeline(tiny(), Pixels(), 8, Runtime(CPU)), REQUESTS[:2], SamplingConfig(sampler="ddpm", steps=2, chunk=2))
    assert torch.equal(torch.get_rng_state(), before)


EVERY_SAMPLER = get_args(SamplingConfig.model_fields["sampler"].annotation)
EVERY_SPACING = get_args(SamplingConfig.model_fields["spacing"].annotation)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_every_sampler_can_be_chosen_and_calls_the_denoiser_once_a_step(sampler: str) -> None:
    """But for Heun, which calls it twice in all steps but the last."""
    calls = 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(x, 0.3)

    sampling, schedule = SamplingConfig.model_validate({"sampler": sampler, "steps": 5}), Flow()
    walk = sampler_of(sampling, torch.zeros_like)
    end = walk(denoise, torch.ones(1, 1, 2, 2), times_of(sampling, schedule, V()), schedule)
    assert calls == (9 if sampler == "heun" else 5)
    torch.testing.assert_close(end, torch.full_like(end, 0.3))


@pytest.mark.parametrize("spacing", EVERY_SPACING)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Quadratic(), Flow()], ids=lambda schedule: schedule.kind)
def test_every_spacing_can_be_chosen(spacing: str, schedule: Schedule) -> None:
    given = {"times": (0.9, 0.4, 0.2, 0.0)} if spacing == "given" else {}
    times = times_of(SamplingConfig.model_validate({"spacing": spacing, "steps": 3, **given}), schedule, V())
    assert times.shape == (4,)
    assert (times.diff() < 0).all()
    assert 0 == times[-1] < times[0] <= 1


@pytest.mark.parametrize("spacing", EVERY_SPACING)
@pytest.mark.parametrize("schedule", [Cosine(shift=1.4), Linear(), Quadratic(), Karras()], ids=lambda it: it.kind)
def test_a_walk_begins_where_the_prediction_is_of_use(spacing: str, schedule: Schedule) -> None:
    given = {"times": (1.0, 0.4, 0.2, 0.0)} if spacing == "given" else {}
    sampling = SamplingConfig.model_validate({"spacing": spacing, "steps": 3, **given})
    plain, made = (times_of(sampling, schedule, parameterization) for parameterization in (V(), Eps()))
    starts = [alpha / (alpha**2 + sigma**2).sqrt() for alpha, sigma in (schedule(plain[0]), schedule(made[0]))]
    if spacing == "given" or starts[0] >= Eps.signal:
        assert torch.equal(made, plain)
    else:
        assert starts[1].item() == pytest.approx(Eps.signal, rel=1e-6)
        torch.testing.assert_close(made / made[0], plain / plain[0])


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
@pytest.mark.parametrize("parameterization", [Eps(), V()], ids=lambda it: it.kind)
def test_a_small_error_of_the_network_stays_small_in_the_picture(
    sampler: str, parameterization: Parameterization
) -> None:
    """Data is one picture of 0.3; the network is right but for 0.05, and says nothing larger than it ever had to."""
    schedule = Cosine(shift=1.4)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t.double())
        x0 = torch.full_like(x, 0.3)
        scales = parameterization(alpha, sigma)
        output = parameterization.target(x0, (x - alpha * x0) / sigma, alpha, sigma).clamp(-4, 4) + 0.05
        return scales.skip * x + scales.out * output

    sampling = SamplingConfig.model_validate({"sampler": sampler, "steps": 20})
    times = times_of(sampling, schedule, parameterization)
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    x = noise(torch.empty(1, 1, 8, 8, dtype=torch.float64))
    end = sampler_of(sampling, noise)(denoise, x, times, schedule)
    assert (end - 0.3).abs().max() < 0.3


def test_an_optimal_variance_that_was_not_measured_is_refused_with_the_remedy(tiny: Tiny) -> None:
    sampling = SamplingConfig(sampler="ddpm", variance="optimal", chunk=1)
    with pytest.raises(Refused, match="variance optimal needs a measurement"):
        draw(Pipeline(tiny(), Pixels(), 8, FP32), REQUESTS[:1], sampling)


def test_a_walk_longer_than_its_table_is_refused_with_the_remedy() -> None:
    with pytest.raises(Refused, match="spacing trailing: 21 steps do not fit a table of 20: take at most 20"):
        times_of(SamplingConfig(spacing="trailing", steps=21), Linear(steps=20), V())


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"sampler": "eular"}, "Input should be 'ddim', "),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"eta": 1.5}, "less than or equal to 1"),
        ({"variance": "middle"}, "'upper', 'lower' or 'optimal'"),
        ({"variance": "optimal"}, "set variance to upper, or sampler to ddpm"),
        ({"chunk": 0}, "greater than or equal to 1"),
        ({"churn": -1.0}, "greater than or equal to 0"),
        ({"sampler": "heun", "eta": 0.5}, "set eta to 0.0, or sampler to ddim or dpmpp_2m or dpmpp_3m"),
        ({"variance": "lower"}, "set variance to upper, or sampler to ddpm"),
        ({"churn": 1.0}, "set churn to 0.0, or sampler to euler or heun"),
        ({"logsnr_limits": (-5.0, 5.0)}, r"set logsnr_limits to \[-10.0, 10.0\], or spacing to karras or logsnr"),
        ({"spacing": "karras", "logsnr_limits": (5.0, -5.0)}, "logsnr_limits must increase"),
        ({"times": (1.0, 0.0), "steps": 1}, r"set times to \[\], or spacing to given"),
        ({"spacing": "given"}, "times must decrease from at most 1 to 0"),
        ({"spacing": "given", "times": (1.0, 0.4, 0.5, 0.0)}, "times must decrease"),
        ({"spacing": "given", "times": (1.0, 0.4, 0.1)}, "times must decrease from at most 1 to 0"),
        ({"spacing": "given", "times": (1.0, 0.4, 0.0)}, "3 times are 2 steps: set steps to 2"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(wrong: dict[str, object], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        SamplingConfig.model_validate(wrong)
