"""Samplers against two independent implementations: diffusers' schedulers and k-diffusion's samplers.

Both walk with the same contracting network, the same start and the same noise, in float64, on 20 steps of a DDPM table
of 1,000. Their float32 tables are replaced by float64 ones; what still casts inside is compared to 1e-6.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import schedulers
from torch import Tensor

from diffusion.samplers import (
    Churn,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    euler_ancestral,
    heun,
    leading_times,
    lms,
    plms,
    trailing_times,
    uniform_times,
    unipc,
)
from diffusion.schedule import Flow, Linear, Schedule, angle

# diffusers hands tensors to NumPy in a way that NumPy is about to forbid.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

N = 20
TABLE = Linear()
ALPHA_BAR = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
BETAS: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}


def network(x: Tensor, at: Tensor) -> Tensor:
    """A nonlinear x0_hat of a variance-preserving state and its angle; it contracts, so errors do not grow."""
    return 0.3 + 1.2 * torch.sin(0.5 * x + 0.3 * x.flip(-1) + at)


def ours(schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(t))
        return network(x / (alpha**2 + sigma**2).sqrt(), angle(alpha, sigma))

    return denoise


def start() -> Tensor:
    return torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Streams:
    """Standard normals of one generator, in the order of asking, which is what both libraries draw from one too."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(2), dtype

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=self.dtype).to(like)


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    assert (one - other).abs().max() <= tolerance * other.std()


# --- diffusers


def exact(scheduler: Any, n: int = N) -> Any:
    """Prepare a scheduler of theirs and exchange its float32 tables for float64 ones."""
    scheduler.alphas_cumprod = ALPHA_BAR
    if hasattr(scheduler, "alpha_t"):
        scheduler.alpha_t, scheduler.sigma_t = ALPHA_BAR.sqrt(), (1 - ALPHA_BAR).sqrt()
        scheduler.lambda_t = scheduler.alpha_t.log() - scheduler.sigma_t.log()
    if hasattr(scheduler, "betas"):
        scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        scheduler.alphas = 1 - scheduler.betas
    scheduler.set_timesteps(n)
    if hasattr(scheduler, "sigmas"):
        steps = [round(float(t)) for t in scheduler.timesteps]
        table = (((1 - ALPHA_BAR) / ALPHA_BAR) ** 0.5).tolist()
        scheduler.sigmas = torch.tensor([*(table[step] for step in steps), 0.0], dtype=torch.float64)
    return scheduler


def theirs(scheduler: Any, x: Tensor, *, scaled: bool = False, stop: int | None = None, **settings: Any) -> Tensor:
    """Walk as their pipelines do. ``scaled`` schedulers keep x / alpha; ``stop`` leaves the last steps out."""
    first = ALPHA_BAR[int(scheduler.timesteps[0])]
    x = x / first.sqrt() if scaled else x
    for t in scheduler.timesteps[:stop]:
        alpha_bar = ALPHA_BAR[int(t)]
        at = torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt())
        x0_hat = network(scheduler.scale_model_input(x, t) if scaled else x, at)
        x = scheduler.step(x0_hat, t, x, **settings).prev_sample
    return x


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("n", [5, 20, 50])
@pytest.mark.parametrize(("spacing", "times"), [("trailing", trailing_times), ("leading", leading_times)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_diffusers(n: int, spacing: str, times: Callable[[int], Tensor], eta: float) -> None:
    scheduler = exact(schedulers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing), n)
    expected = theirs(scheduler, start(), eta=eta, generator=generator())
    close(ddim(ours(TABLE), start(), times(n), TABLE, eta=eta, noise=Streams()), expected, 1e-10)


def test_diffusers_ddim_with_linspace_spacing_steps_to_levels_it_does_not_visit() -> None:
    """It steps down by T // n table entries whatever the next entry is: with 10 steps from 1000 to 900, told 889.

    Its walk is therefore our steps of 0.1 from each of its times, and not a walk along its times.
    """
    scheduler = exact(schedulers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace"), 10)
    expected = theirs(scheduler, start())
    times = [(int(t) + 1) / 1000 for t in scheduler.timesteps]
    x = start()
    for t in times:
        x = ddim(ours(TABLE), x, torch.tensor([t, max(t - 0.1, 0)], dtype=torch.float64), TABLE)
    close(x, expected, 1e-10)
    walk = ddim(ours(TABLE), start(), torch.tensor([*times, 0], dtype=torch.float64), TABLE)
    assert (walk - expected).abs().max() > 0.01


@pytest.mark.parametrize(("variance", "name"), [("lower", "fixed_small"), ("upper", "fixed_large")])
def test_ddpm_is_diffusers(variance: Any, name: str) -> None:
    """But for the last step: theirs adds noise to the picture there unless it is taken from the very first entry."""
    settings = {"variance_type": name, "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = exact(schedulers.DDPMScheduler(**BETAS, **settings))
    expected = theirs(scheduler, start(), stop=N - 1, generator=generator())
    x = ddpm(ours(TABLE), start(), uniform_times(N)[:-1], TABLE, noise=Streams(), variance=variance)
    close(x, expected, 1e-10)


# Each with the states that its scheduler keeps, and how exactly it computes.
SOLVERS = [
    pytest.param(euler, schedulers.EulerDiscreteScheduler, {}, True, 1e-6, id="euler"),
    pytest.param(partial(heun, average="eps"), schedulers.HeunDiscreteScheduler, {}, True, 1e-10, id="heun"),
    pytest.param(lms, schedulers.LMSDiscreteScheduler, {}, True, 1e-10, id="lms"),
    pytest.param(dpmpp_2m, schedulers.DPMSolverMultistepScheduler, {"solver_order": 2}, False, 1e-6, id="2m"),
    pytest.param(
        dpmpp_3m,
        schedulers.DPMSolverMultistepScheduler,
        {"solver_order": 3, "solver_type": "heun"},
        False,
        1e-6,
        id="3m",
    ),
    pytest.param(unipc, schedulers.UniPCMultistepScheduler, {"solver_order": 2}, False, 1e-10, id="unipc-2"),
    pytest.param(
        partial(unipc, order=3), schedulers.UniPCMultistepScheduler, {"solver_order": 3}, False, 1e-10, id="unipc-3"
    ),
    pytest.param(
        partial(unipc, order=3, correct=False),
        schedulers.UniPCMultistepScheduler,
        {"solver_order": 3, "disable_corrector": list(range(N))},
        False,
        1e-10,
        id="unip-3",
    ),
]


@pytest.mark.parametrize(("sampler", "scheduler", "settings", "scaled", "tolerance"), SOLVERS)
def test_deterministic_solvers_are_diffusers(
    sampler: Any, scheduler: Any, settings: dict[str, Any], scaled: bool, tolerance: float
) -> None:
    prepared = exact(scheduler(**BETAS, timestep_spacing="trailing", **settings))
    expected = theirs(prepared, start(), scaled=scaled)
    close(sampler(ours(TABLE), start(), uniform_times(N), TABLE), expected, tolerance)


def test_plms_is_diffusers_after_its_start() -> None:
    """Theirs spends a second call on the first step; ours is what theirs does when told that this is behind it."""
    settings = {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = exact(schedulers.PNDMScheduler(**{**BETAS, "prediction_type": "epsilon"}, **settings))
    x = start()
    for entry in range(999, 0, -1000 // N):
        alpha, sigma = ALPHA_BAR[entry].sqrt(), (1 - ALPHA_BAR[entry]).sqrt()
        eps = (x - alpha * network(x, torch.atan2(sigma, alpha))) / sigma
        x = scheduler.step(eps, entry, x).prev_sample
        scheduler.counter = max(scheduler.counter, 2)
    close(plms(ours(TABLE), start(), uniform_times(N), TABLE), x, 1e-10)


def test_the_sde_form_of_2m_is_diffusers() -> None:
    settings = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}
    scheduler = exact(schedulers.DPMSolverMultistepScheduler(**BETAS, **settings))
    expected = theirs(scheduler, start(), generator=generator())
    end = dpmpp_2m(ours(TABLE), start(), uniform_times(N), TABLE, eta=1, noise=Streams(torch.float32))
    close(end, expected, 1e-6)


# --- k-diffusion


@pytest.fixture(scope="module")
def k_diffusion() -> Any:
    """Its module of samplers, alone: the package does not import beside a current setuptools.

    The packages it imports beside torch serve functions that are not used here.
    """
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0]
    stand_ins = {name: ModuleType(name) for name in ("torchdiffeq", "torchsde", "k_diffusion", "k_diffusion.utils")}
    stand_ins["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    stand_ins["k_diffusion"].__path__ = [folder]
    utils = stand_ins["k_diffusion.utils"]
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        samplers = importlib.import_module("k_diffusion.sampling")
        patch.delitem(sys.modules, "k_diffusion.sampling")
    return samplers


def walk_k(sampler: Any, schedule: Schedule, times: Tensor, **settings: Any) -> Tensor:
    """Their walk: x / alpha over sigma / alpha, and a model of these."""

    def model(x: Tensor, ratio: Tensor) -> Tensor:
        ratio = ratio.view(-1, 1, 1, 1)
        return network(x / (1 + ratio**2).sqrt(), torch.atan(ratio))

    alpha, sigma = schedule(times)
    end: Tensor = sampler(model, start() / alpha[0], sigma / alpha, disable=True, **settings)
    return end * alpha[-1]


WALKS = [
    pytest.param(TABLE, uniform_times(N), id="linear"),
    pytest.param(Flow(), 0.96 * uniform_times(N), id="flow"),
]


@pytest.mark.parametrize(("schedule", "times"), WALKS)
@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        (euler, "sample_euler"),
        (partial(heun, average="eps"), "sample_heun"),
        (lms, "sample_lms"),
        (dpmpp_2m, "sample_dpmpp_2m"),
    ],
)
def test_deterministic_samplers_are_k_diffusions(
    sampler: Any, name: str, schedule: Schedule, times: Tensor, k_diffusion: Any
) -> None:
    expected = walk_k(getattr(k_diffusion, name), schedule, times)
    close(sampler(ours(schedule), start(), times, schedule), expected, 1e-10)


@pytest.mark.parametrize(("schedule", "times"), WALKS)
@pytest.mark.parametrize(
    ("sampler", "name", "settings"),
    [
        (euler_ancestral, "sample_euler_ancestral", {}),
        (dpmpp_2m, "sample_dpmpp_2m_sde", {"solver_type": "midpoint"}),
        (dpmpp_3m, "sample_dpmpp_3m_sde", {}),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_stochastic_samplers_are_k_diffusions(
    sampler: Any,
    name: str,
    settings: dict[str, Any],
    eta: float,
    schedule: Schedule,
    times: Tensor,
    k_diffusion: Any,
) -> None:
    noise = Streams()
    asked = {"eta": eta, "noise_sampler": lambda now, to: noise(start()), **settings}
    expected = walk_k(getattr(k_diffusion, name), schedule, times, **asked)
    close(sampler(ours(schedule), start(), times, schedule, eta=eta, noise=Streams()), expected, 1e-10)


@pytest.mark.parametrize("schedule", [TABLE, Flow()], ids=["linear", "flow"])
@pytest.mark.parametrize(("sampler", "name"), [(euler, "sample_euler"), (partial(heun, average="eps"), "sample_heun")])
@pytest.mark.parametrize("amount", [1.0, 30.0])
def test_churn_is_k_diffusions(
    sampler: Any, name: str, amount: float, schedule: Schedule, k_diffusion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From t = 0.6, where there is room for more noise; theirs goes beyond t = 1, which ours does not."""
    times, noise, churn = 0.6 * uniform_times(N), Streams(), Churn(amount, inflation=1.01)
    monkeypatch.setattr(torch, "randn_like", noise)
    expected = walk_k(getattr(k_diffusion, name), schedule, times, s_churn=amount, s_noise=1.01)
    close(sampler(ours(schedule), start(), times, schedule, churn=churn, noise=Streams()), expected, 1e-9)
