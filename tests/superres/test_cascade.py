"""Details drawn for a small picture: what the network is shown, what is drawn at birth, and by an exact network."""

from collections.abc import Callable, Sequence

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser
from diffusion.parameterization import X0, Edm, Parameterization, V
from diffusion.pipeline import Request, SamplingConfig
from diffusion.schedule import Cosine, Flow
from diffusion.unet import UNetConfig
from lab.resampling import bicubic
from lab.runtime import CPU
from lab.text.clip import ClipConfig, vocabulary
from superres.cascade import Cascade, Scale, Shown
from superres.cascade_pipeline import CascadePipeline, EnlargingConfig
from superres.cascade_stage import CascadeConfig, build
from tests.superres.conftest import WORDS, wake

NETWORK = UNetConfig(patch=2, widths=(16, 32), depth=1, middle=1, attention=(1,), head_width=16, skip_scale=0.7071)
QUICK = SamplingConfig(sampler="ddim", steps=3, guidance=1.0, chunk=2)
PROMPTS = ("a red circle", "two white crosses", "")


def cascade(awake: bool = False, **settings: object) -> Cascade:
    text = ClipConfig(width=16, heads=2, layers=1, context=12, vocabulary=vocabulary(WORDS))
    model = build(CascadeConfig.model_validate({"factor": 2, "unet": NETWORK, **settings}), text, seed=0)
    if awake:
        wake(model)
    return model.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def pipeline(
    model: Cascade, tile: int = 0, grain: float = 0.0, back_projection: int = 0, **sampling: object
) -> CascadePipeline:
    told = SamplingConfig.model_validate({**QUICK.model_dump(), **sampling})
    return CascadePipeline(model, told, EnlargingConfig(grain=grain, back_projection=back_projection), CPU, tile=tile)


def asked(num: int) -> list[Request]:
    return [Request(PROMPTS[k % 3], k) for k in range(num)]


def enlarge(by: CascadePipeline, small: Tensor, requests: Sequence[Request] | None = None, seed: int = 0) -> Tensor:
    return by(small, asked(len(small)) if requests is None else requests, seed, lambda: None)


# What is shown, and what is missing


def test_details_are_what_the_enlarged_picture_lacks_in_units_of_their_spread() -> None:
    scale, small, noise, large = Scale(2, 0.3), drawn(2, 3, 5, 7), drawn(2, 3, 5, 7, seed=1), drawn(2, 3, 10, 14)
    grain = torch.tensor([0.0, 0.4])
    shown = scale.show(small, noise, grain)
    torch.testing.assert_close(shown.picture[0], bicubic(small[:1], (10, 14))[0])
    torch.testing.assert_close(shown.picture[1], bicubic(small[1:] + 0.4 * noise[1:], (10, 14))[0])
    details = scale.details(large, shown)
    torch.testing.assert_close(details[0], (large[0] - shown.picture[0]) / 0.3)
    torch.testing.assert_close(details[1], (large[1] - shown.picture[1]) / 0.5)
    torch.testing.assert_close(scale.large(details, shown), large)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_details_have_about_unit_variance_at_any_grain(factor: int) -> None:
    scale, small = Scale(factor, 0.1), torch.zeros(2, 3, 32, 32)
    large = 0.1 * torch.randn(2, 3, 32 * factor, 32 * factor, generator=torch.Generator().manual_seed(0))
    shown = scale.show(small, drawn(2, 3, 32, 32, seed=1) / drawn(2, 3, 32, 32, seed=1).std(), torch.tensor([0.0, 0.5]))
    spread = scale.details(large, shown).std(dim=(1, 2, 3))
    assert 0.97 < spread[0] < 1.03
    assert 0.75 < spread[1] < 1.03  # the filter takes a part of the noise


def test_the_network_hears_state_level_text_picture_and_grain() -> None:
    model = cascade(awake=True)
    x_t, t, picture = drawn(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9]), drawn(3, 3, 16, 16, seed=1)
    shown, cond = Shown(picture, torch.tensor([0.0, 0.1, 0.3])), model.encode(PROMPTS)
    before = model.of(shown)(x_t, t, cond)
    told = shown.grain.flip(0)  # by the angle alone: the picture reaches the network as it did before
    as_strong = picture * ((1 + told**2) / (1 + shown.grain**2)).sqrt()[:, None, None, None]
    for other in (
        model.of(shown)(x_t.flip(0), t, cond),
        model.of(shown)(x_t, t.flip(0), cond),
        model.of(shown)(x_t, t, Cond(*(part.flip(0) for part in cond))),
        model.of(shown._replace(picture=picture.flip(0)))(x_t, t, cond),
        model.of(Shown(as_strong, told))(x_t, t, cond),
    ):
        assert ((other - before).abs().amax(dim=(1, 2, 3))[[0, 2]] > 1e-4).all()


def test_pictures_are_bound_to_every_copy_of_their_states() -> None:
    """Guidance runs conditional and null prediction as one batch of two copies."""
    model = cascade(awake=True)
    shown = Shown(drawn(2, 3, 8, 8), torch.tensor([0.0, 0.2]))
    x_t, t, cond = drawn(2, 3, 8, 8, seed=1), torch.tensor([0.3, 0.6]), model.encode(PROMPTS[:2])
    once = model.of(shown)(x_t, t, cond)
    twice = model.of(shown)(torch.cat([x_t, x_t]), torch.cat([t, t]), Cond(*(torch.cat([c, c]) for c in cond)))
    torch.testing.assert_close(twice, torch.cat([once, once]))


def test_training_and_drawing_ask_the_same_network() -> None:
    model = cascade(awake=True)
    shown = Shown(drawn(3, 3, 8, 8), torch.full((3,), 0.1))
    x_t, t = drawn(3, 3, 8, 8, seed=1), torch.tensor([0.2, 0.5, 0.8])
    output, scales = model(x_t, t, model.text.prepare(PROMPTS), shown)
    x0_hat = scales.skip[:, None, None, None] * x_t + scales.out[:, None, None, None] * output
    torch.testing.assert_close(model.of(shown)(x_t, t, model.encode(PROMPTS)), x0_hat)


# At birth


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "unipc_2", "lms"])
@pytest.mark.parametrize("factor", [2, 4])
def test_at_birth_a_prediction_of_details_draws_none(factor: int, sampler: str) -> None:
    model, small = cascade(factor=factor, parameterization=X0()), drawn(2, 3, 8, 12)
    large = enlarge(pipeline(model, sampler=sampler), small)
    torch.testing.assert_close(large, bicubic(small, (8 * factor, 12 * factor)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [X0(), V(), Edm(sigma_data=1.0)], ids=lambda p: p.kind)
def test_at_birth_pure_noise_tells_of_no_details(kind: Parameterization) -> None:
    model = cascade(parameterization=kind, schedule=Flow())
    shown = Shown(drawn(2, 3, 8, 8), torch.zeros(2))
    x0_hat = model.of(shown)(drawn(2, 3, 8, 8, seed=1), torch.ones(2), model.encode(PROMPTS[:2]))
    torch.testing.assert_close(x0_hat, torch.zeros(2, 3, 8, 8), rtol=0, atol=1e-6)


# An exact network for Gaussian pictures


class World:
    """Pictures of 4 x 4 pixels, normal and smooth, each channel by itself; the small ones have 2 x 2."""

    def __init__(self, scale: Scale, std: float = 0.25) -> None:
        place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
        self.covariance = std**2 * torch.exp(-torch.cdist(place, place) / 2)
        self.down = _matrix(lambda images: bicubic(images, (2, 2)), 4)
        self.up = _matrix(lambda images: bicubic(images, (4, 4)), 2)
        self.root, self.scale = torch.linalg.cholesky(self.covariance), scale

    def draw(self, num: int) -> Tensor:
        unit = torch.randn(num, 3, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return rearrange(unit @ self.root.T, "b c (h w) -> b c h w", h=4)

    def posterior(self, grain: Tensor) -> tuple[Tensor, Tensor]:
        """What small pictures with grain (b,) tell: gain (b, 16, 4), and the covariance (b, 16, 16) that is left."""
        seen = self.down @ self.covariance @ self.down.T + grain[:, None, None] ** 2 * torch.eye(4).double()
        gain = self.covariance @ self.down.T @ torch.linalg.inv(seen)
        return gain, self.covariance - gain @ self.down @ self.covariance


class Exact(nn.Module):
    """Says v as the rule of Bayes has it."""

    factor = 1

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, shown: Shown, tap: object = None) -> Tensor:
        world, grain = self.world, shown.grain.double()
        alpha, sigma = (level[:, None, None] for level in (angle.double().cos(), angle.double().sin()))
        spread = (world.scale.detail**2 + grain**2).sqrt()[:, None, None]
        gain, left = world.posterior(grain)
        flat = rearrange(shown.picture.double(), "b c h w -> b (h w) c")
        mean = ((gain @ torch.linalg.pinv(world.up)) @ flat - flat) / spread
        left = left / spread**2
        state = rearrange(x.double(), "b c h w -> b (h w) c")
        gained = torch.linalg.solve(alpha**2 * left + sigma**2 * torch.eye(16), state - alpha * mean)
        v = (alpha * state - (mean + alpha * left @ gained)) / sigma
        return rearrange(v, "b (h w) c -> b c h w", h=4).to(x)


def _matrix(act: Callable[[Tensor], Tensor], side: int) -> Tensor:
    basis = torch.eye(side**2, dtype=torch.float64).unflatten(1, (1, side, side))
    return act(basis).flatten(1).T


def exact(detail: float = 0.1) -> tuple[World, Cascade]:
    world, model = World(Scale(2, detail)), cascade()
    return world, Cascade(Denoiser(Exact(world), Cosine(), V()), model.text, world.scale).eval()


@pytest.mark.parametrize("grain", [0.0, 0.2])
def test_an_exact_network_draws_what_a_small_picture_leaves_open(grain: float) -> None:
    """Mean and covariance of what is drawn are those of Bayes, given the small picture with its grain."""
    world, model = exact()
    y, num = drawn(1, 3, 2, 2) / 4, 3000
    by = pipeline(model, grain=grain, sampler="dpmpp_2m", steps=30, chunk=num)
    large = enlarge(by, y.expand(num, -1, -1, -1), [Request("", k) for k in range(num)]).double()
    gain, left = world.posterior(torch.tensor([grain]).double())
    mean = torch.einsum("xy, cy -> cx", gain[0], y[0].double().flatten(1))
    off = large.flatten(2) - mean
    expected = left[0] + grain**2 * gain[0] @ gain[0].T
    noise = (expected.diagonal().max() / num).sqrt()
    assert off.mean(dim=0).abs().max() < 4.5 * noise
    found = torch.einsum("b c x, b c y -> x y", off, off) / (3 * num)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.diagonal().mean()))


# Impossible settings


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"crop": 15}, "crop=15 is no multiple of factor=2"),
        ({"crop": 18}, "crop=18 is no multiple of 4, the network's factor"),
        ({"grain": 0.1, "enlarging": {"grain": 0.2}}, "enlarging.grain=0.2 is more than the network learns of"),
        ({"loss": {"offset_noise": 0.1}}, "which the small picture shows"),
        ({"caption_drop": 1.0, "sampling": {"guidance": 2.0}}, "does nothing where all captions are dropped"),
        ({"factor": 3}, "factor"),
        ({"parameterization": {"kind": "eps"}, "schedule": {"kind": "flow"}}, "predict v or x0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        CascadeConfig.model_validate({"factor": 2, "unet": NETWORK, **wrong})


def test_the_seed_decides_the_weights() -> None:
    text = ClipConfig(width=16, heads=2, layers=1, context=12, vocabulary=vocabulary(WORDS))
    one, same, other = (build(CascadeConfig(unet=NETWORK), text, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
