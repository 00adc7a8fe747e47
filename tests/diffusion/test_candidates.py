"""Walks that stop and go on are the whole walk, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion.candidates import Candidates
from diffusion.pipeline import Pipeline, Request, SamplingConfig
from diffusion.text_to_image import TextToImage
from lab.errors import Refused
from lab.evaluation.best_of_n import Candidate, Round, best_of_n
from lab.runtime import Runtime
from vae.codec import Pixels

Tiny = Callable[..., TextToImage]
CPU = torch.device("cpu")
FP32, BF16 = Runtime(CPU), Runtime(CPU, "bf16", channels_last=True)
PROMPTS = [Request("a red circle above a blue square"), Request("a green ring", negative="a red ring"), Request("")]
SAMPLERS: list[dict[str, object]] = [
    {},
    {"eta": 0.7},
    {"sampler": "ddpm"},
    {"sampler": "euler"},
    {"sampler": "euler_ancestral"},
    {"sampler": "heun", "spacing": "logsnr"},
    {"sampler": "dpmpp_2m", "eta": 1.0},
    {"sampler": "dpmpp_2m", "spacing": "karras"},
    {"sampler": "dpmpp_3m", "eta": 0.5},
    {"sampler": "dpmpp_3m", "guide": {"rule": {"kind": "cfg_zero_star"}}},
]
CASES = [
    *(pytest.param(own, FP32, id=f"{own}-fp32") for own in SAMPLERS),
    *(pytest.param(own, BF16, id=f"{own}-bf16") for own in SAMPLERS[:3]),
    *(pytest.param(own, BF16, id=f"{own}-bf16", marks=pytest.mark.slow) for own in SAMPLERS[3:]),
]
ALL = [Candidate(item, number) for item in range(3) for number in range(3)]


def settings(own: dict[str, object]) -> SamplingConfig:
    return SamplingConfig.model_validate({"steps": 7, "chunk": 4, **own})


def drawn(pipeline: Pipeline, sampling: SamplingConfig, wanted: list[Candidate]) -> Tensor:
    """The images as the pipeline draws them in one walk."""
    requests = [PROMPTS[item]._replace(number=number) for item, number in wanted]
    return torch.cat(list(pipeline.draw(requests, 3, sampling)))


@pytest.mark.parametrize(("own", "runtime"), CASES)
def test_a_walk_in_parts_is_the_whole_walk(own: dict[str, object], runtime: Runtime, tiny: Tiny) -> None:
    pipeline, sampling = Pipeline(runtime.place(tiny()), Pixels(), 8, runtime), settings(own)
    whole = drawn(pipeline, sampling, ALL)
    candidates = Candidates(pipeline, PROMPTS, 3, sampling, lambda: None)
    previews = candidates.grow(ALL, 1)
    assert previews.shape == whole.shape
    some = [ALL[k] for k in (7, 0, 3, 4, 8)]  # in another order, in other chunks
    assert not torch.equal(candidates.grow(some, 3), whole[[7, 0, 3, 4, 8]])
    candidates.grow(some[:3], 4)
    assert torch.equal(candidates.grow(some[:3], 7), whole[[7, 0, 3]])


def test_at_once_every_sampler_will_do(tiny: Tiny) -> None:
    pipeline = Pipeline(FP32.place(tiny()), Pixels(), 8, FP32)
    for name in ("unipc_2", "unipc_3", "plms", "lms"):
        sampling = settings({"sampler": name})
        found = Candidates(pipeline, PROMPTS, 3, sampling, lambda: None).grow(ALL[:5], 7)
        assert torch.equal(found, drawn(pipeline, sampling, ALL[:5]))


@pytest.mark.parametrize(
    ("own", "answer"),
    [
        ({"sampler": "unipc_2"}, "unipc_2 cannot be paused"),
        ({"sampler": "lms"}, "lms cannot be paused"),
        ({"sampler": "heun", "churn": 5.0}, "heun cannot be paused with churn 5.0: set it to 0"),
        ({"guide": {"rule": {"kind": "apg", "momentum": -0.5}}}, "guidance with momentum cannot be paused"),
    ],
)
def test_what_remembers_more_is_refused(own: dict[str, object], answer: str, tiny: Tiny) -> None:
    candidates = Candidates(Pipeline(FP32.place(tiny()), Pixels(), 8, FP32), PROMPTS, 3, settings(own), lambda: None)
    with pytest.raises(Refused, match=answer):
        candidates.grow(ALL, 3)


def test_candidates_are_nested_and_their_evaluations_counted(tiny: Tiny) -> None:
    """Of n = 8 the first four are those of n = 4, bit for bit, however many are given up on the way."""
    pipeline, sampling = Pipeline(FP32.place(tiny()), Pixels(), 8, FP32), settings({"sampler": "dpmpp_2m", "eta": 1.0})
    kept: dict[int, dict[Candidate, Tensor]] = {}

    def run(n: int, rounds: list[Round]) -> tuple[int, list[int]]:
        candidates, kept[n] = Candidates(pipeline, PROMPTS, 3, sampling, lambda: None), {}

        def grow(wanted: list[Candidate], step: int) -> Tensor:
            images = candidates.grow(wanted, step)
            kept[n] |= dict(zip(wanted, images, strict=True)) if step == 7 else {}
            return images

        found = best_of_n(grow, lambda images, items: images.mean(dim=(1, 2, 3)).tolist(), 3, n, 7, rounds)
        assert all(
            torch.equal(each.images[0], kept[n][Candidate(item, each.ranking[0])]) for item, each in enumerate(found)
        )
        return candidates.evaluations, [each.steps for each in found]

    assert run(4, []) == (3 * 4 * 7, [28] * 3)
    assert run(8, []) == (3 * 8 * 7, [56] * 3)
    assert all(torch.equal(image, kept[8][candidate]) for candidate, image in kept[4].items())
    assert run(9, [Round(2, 0.5), Round(4, 0.4)]) == (3 * 34, [34] * 3)  # 9 x 2, 5 x 2, 2 x 3
    assert all(torch.equal(image, kept[8][candidate]) for candidate, image in kept[9].items() if candidate.number < 8)


def test_a_poll_ends_it(tiny: Tiny) -> None:
    class Enough(Exception):
        pass

    def poll() -> None:
        raise Enough

    candidates = Candidates(Pipeline(FP32.place(tiny()), Pixels(), 8, FP32), PROMPTS, 3, settings({}), poll)
    with pytest.raises(Enough):
        candidates.grow(ALL, 3)
