"""Prompts to images: an image is a function of its recipe and of nothing else, bit for bit."""

from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffusion.guidance import GuidanceConfig, classifier_free
from diffusion.pipeline import Pipeline, Request, SamplingConfig, sampler_of, times_of
from diffusion.samplers import ddim, uniform_times
from diffusion.schedule import Cosine, Flow, Linear, Quadratic, Schedule
from diffusion.text_to_image import TextToImage
from lab.errors import Refused
from lab.randomness import normal
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
]
REQUESTS = [Request(prompt, number % 3, "a red ring" if number == 5 else "") for number, prompt in enumerate(PROMPTS)]
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


@pytest.mark.parametrize(
    "runtime",
    [Runtime(CPU, "fp32"), Runtime(CPU, "bf16"), Runtime(CPU, "bf16", channels_last=True)],
    ids=["fp32", "bf16", "nhwc"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim"},
        {"sampler": "ddim", "eta": 0.7},
        {"sampler": "ddpm"},
        {"sampler": "dpmpp_2m", "eta": 1.0},
        {"sampler": "unipc_3", "spacing": "logsnr"},
    ],
    ids=["ddim", "eta", "ddpm", "sde", "unipc"],
)
def test_an_image_does_not_depend_on_what_it_was_asked_for_with(
    runtime: Runtime, settings: dict[str, object], tiny: Tiny
) -> None:
    pipeline = Pipeline(runtime.place(tiny()), Pixels(), 8, runtime)
    sampling = SamplingConfig.model_validate({"steps": 3, "chunk": 4, **settings})
    seven = draw(pipeline, REQUESTS, sampling)
    order = [4, 0, 6, 2, 5, 1, 3]
    assert torch.equal(draw(pipeline, [REQUESTS[i] for i in order], sampling), seven[order])
    assert torch.equal(draw(pipeline, REQUESTS[:4], sampling), seven[:4])
    for i, request in enumerate(REQUESTS):
        assert torch.equal(draw(pipeline, [request], sampling), seven[i : i + 1])


def test_a_deterministic_image_is_its_noise_walked_to_data(tiny: Tiny) -> None:
    model = tiny()
    pipeline, sampling = Pipeline(model, Pixels(), 8, Runtime(CPU)), SamplingConfig(steps=4, guidance=2.5, chunk=2)
    images = draw(pipeline, [Request("a red circle", 5, "a ring"), Request("", 2)], sampling, seed=9)
    denoise = classifier_free(model.denoiser, model.encode(["a red circle", ""]), model.encode(["a ring", ""]), 2.5)
    schedule, times = model.denoiser.schedule, uniform_times(4)
    start = schedule(times[:1])[1].item() * normal(9, "sample", [5, 2], (3, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(images, ddim(denoise, start, times, schedule))


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
    pipeline, base = Pipeline(tiny(), Pixels(), 8, Runtime(CPU)), SamplingConfig(steps=5, chunk=1)
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
    chunks = list(pipeline.draw(REQUESTS, 0, SamplingConfig(steps=1, chunk=3, guidance=10)))
    assert [tuple(chunk.shape) for chunk in chunks] == [(3, 3, 8, 8), (3, 3, 8, 8), (1, 3, 8, 8)]
    images = torch.cat(chunks)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.abs().max() > 1
    assert list(pipeline.draw([], 0, SamplingConfig())) == []


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
    end = walk(denoise, torch.ones(1, 1, 2, 2), times_of(sampling, schedule), schedule)
    assert calls == (9 if sampler == "heun" else 5)
    torch.testing.assert_close(end, torch.full_like(end, 0.3))


@pytest.mark.parametrize("spacing", EVERY_SPACING)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Quadratic(), Flow()], ids=lambda schedule: schedule.kind)
def test_every_spacing_can_be_chosen(spacing: str, schedule: Schedule) -> None:
    given = {"times": (0.9, 0.4, 0.2, 0.0)} if spacing == "given" else {}
    times = times_of(SamplingConfig.model_validate({"spacing": spacing, "steps": 3, **given}), schedule)
    assert times.shape == (4,)
    assert (times.diff() < 0).all()
    assert 0 == times[-1] < times[0] <= 1


def test_a_walk_longer_than_its_table_is_refused_with_the_remedy() -> None:
    with pytest.raises(Refused, match="spacing trailing: 21 steps do not fit a table of 20: take at most 20"):
        times_of(SamplingConfig(spacing="trailing", steps=21), Linear(steps=20))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"sampler": "eular"}, "Input should be 'ddim', "),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"eta": 1.5}, "less than or equal to 1"),
        ({"variance": "middle"}, "'upper' or 'lower'"),
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
