"""The walk that enlarges pictures: what decides it, tiles in one field of noise, and the way back to the input."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser
from diffusion.guidance import AdaptiveProjected, GuidanceConfig, PlusPlus
from diffusion.parameterization import X0, V
from diffusion.pipeline import Request
from diffusion.schedule import Cosine
from lab.evaluation.pairs import hold_to_input
from lab.images import from_uint8, to_uint8
from lab.resampling import bicubic
from lab.runtime import CPU
from superres.cascade import Bound, Cascade, Scale, Shown
from superres.cascade_pipeline import MARGIN, CascadePipeline, back_projected
from tests.superres.test_cascade import NETWORK, asked, cascade, drawn, enlarge, pipeline
from vae.tiling import Tiling


@pytest.mark.parametrize(("guidance", "tile"), [(1.0, 0), (2.0, 0), (2.0, 16)])
def test_a_picture_does_not_depend_on_what_came_with_it(guidance: float, tile: int) -> None:
    by = pipeline(cascade(awake=True), tile, grain=0.05, guidance=guidance, eta=1.0)
    small, requests = drawn(3, 3, 8, 12), asked(3)
    together = enlarge(by, small, requests)
    for k in range(3):
        assert torch.equal(enlarge(by, small[k : k + 1], requests[k : k + 1])[0], together[k])
    assert torch.equal(enlarge(by, small.flip(0), requests[::-1]).flip(0), together)


def test_where_memory_is_short_it_takes_fewer_at_a_time() -> None:
    by, passes = pipeline(cascade(awake=True), chunk=8), list[int]()
    by.model.denoiser.network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    for chunk, taken in ((32, 8), (4, 4), (1, 1)):
        passes.clear()
        assert enlarge(by.within(chunk), drawn(3, 3, 4, 4)).isfinite().all()
        assert set(passes) == {taken}


def test_seed_number_prompt_and_negative_prompt_decide() -> None:
    by, small = pipeline(cascade(awake=True), guidance=2.0), drawn(1, 3, 8, 8)
    first = enlarge(by, small, [Request("a red circle")])
    assert torch.equal(first, enlarge(by, small, [Request("a red circle")]))
    for request, seed in (
        (Request("a red circle"), 1),
        (Request("a red circle", 1), 0),
        (Request("two white crosses"), 0),
        (Request("a red circle", 0, "two white crosses"), 0),
    ):
        assert (enlarge(by, small, [request], seed) - first).abs().max() > 1e-4


def test_a_deaf_cascade_hears_no_prompt() -> None:
    by = pipeline(cascade(awake=True))
    deaf = CascadePipeline(by.model, by.sampling, by.enlarging, CPU, hears_text=False)
    small = drawn(1, 3, 8, 8)
    assert torch.equal(enlarge(deaf, small, [Request("a red circle")]), enlarge(by, small, [Request("")]))


@pytest.mark.parametrize("sampler", ["ddpm", "euler", "euler_ancestral", "dpmpp_3m", "unipc_3", "plms"])
def test_every_sampler_takes_it(sampler: str) -> None:
    assert enlarge(pipeline(cascade(awake=True), sampler=sampler), drawn(1, 3, 4, 4)).isfinite().all()


@pytest.mark.parametrize(
    "rule",
    [GuidanceConfig(rule=AdaptiveProjected(momentum=-0.5)), GuidanceConfig(rule=PlusPlus())],
    ids=["apg", "cfg++"],
)
def test_guidance_acts_on_the_whole_picture(rule: GuidanceConfig) -> None:
    """With one tile that holds all of it, the walk is that without tiles."""
    small, model = drawn(1, 3, 8, 8), cascade(awake=True)
    whole = enlarge(pipeline(model, guidance=2.0, guide=rule), small)
    torch.testing.assert_close(enlarge(pipeline(model, 64, guidance=2.0, guide=rule), small), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 3)])
@pytest.mark.parametrize("factor", [2, 8])
def test_any_size_is_enlarged(factor: int, height: int, width: int) -> None:
    network = NETWORK.model_copy(update={"widths": (16, 32, 32), "attention": ()})
    large = enlarge(pipeline(cascade(True, factor=factor, unet=network)), drawn(1, 3, height, width))
    assert large.shape == (1, 3, factor * height, factor * width)
    assert large.isfinite().all()


def test_it_polls_before_each_step() -> None:
    polls: list[None] = []
    pipeline(cascade(), steps=5)(drawn(3, 3, 4, 4), asked(3), 0, lambda: polls.append(None))
    assert len(polls) == 2 * 5  # two chunks


# Tiles


def test_tiles_of_a_network_that_sees_single_pixels_are_the_whole() -> None:
    class Pointwise(nn.Module):
        def forward(self, x: Tensor, angle: Tensor, cond: Cond, shown: Shown, tap: object = None) -> Tensor:
            return x + x * shown.picture + shown.grain[:, None, None, None] * angle[:, None, None, None]

    shown = Shown(drawn(2, 3, 24, 40), torch.tensor([0.1, 0.5]))
    x, angle = drawn(4, 3, 24, 40, seed=1), torch.tensor([0.1, 0.5, 0.9, 1.3])
    nobody = Cond(torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1))
    whole = Bound(Pointwise(), shown)(x, angle, nobody)
    tiled = Bound(Pointwise(), shown, Tiling(8, 4, blend=True))(x, angle, nobody)
    torch.testing.assert_close(tiled, whole)
    twice = Shown(shown.picture.repeat(2, 1, 1, 1), shown.grain.repeat(2))
    torch.testing.assert_close(whole, Pointwise()(x, angle, nobody, twice))


def gradient_across(images: Tensor, period: int) -> float:
    """How steep images (b, 3, H, W) are where tiles meet, relative to how steep they are within 16 pixels of it."""
    across, beside = [], []
    for image in (images, images.transpose(2, 3)):
        steps = image.diff(dim=3).abs().mean(dim=(0, 1, 2))  # between columns k and k + 1
        for seam in range(period, image.shape[3], period):
            across.append(steps[seam - 1])
            beside += [*steps[seam - 17 : seam - 1], *steps[seam : seam + 16]]
    return float(torch.stack(across).mean() / torch.stack(beside).mean())


class Tone(nn.Module):
    """Sees all of what it is given, and says how bright that is: tiles differ as much as they can."""

    factor = 4

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, shown: Shown, tap: object = None) -> Tensor:
        brightness: Tensor = shown.picture.mean(dim=(1, 2, 3), keepdim=True)
        return 5 * brightness + torch.zeros_like(x)


def test_no_seam_is_seen_between_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    line = torch.linspace(-0.8, 0.8, 96)
    small = torch.stack([line.expand(96, -1), -line.expand(96, -1).T, (line + line[:, None]) / 2])[None]
    model = Cascade(Denoiser(Tone(), Cosine(), X0()), cascade().text, Scale(2, 0.1)).eval()
    by = pipeline(model, 32, steps=4)
    assert by._tiling == Tiling(64, MARGIN, blend=True)
    assert gradient_across(enlarge(by, small), 64) < 1.05
    monkeypatch.setattr(CascadePipeline, "_tiling", Tiling(64, 0, blend=False))
    assert gradient_across(enlarge(by, small), 64) > 10


def test_tiles_walk_in_one_field_of_noise() -> None:
    """What starts as noise and hears of nothing else is the same in tiles and whole: no tile draws its own."""

    class Nobody(nn.Module):
        factor = 4

        def forward(self, x: Tensor, angle: Tensor, cond: Cond, shown: Shown, tap: object = None) -> Tensor:
            return 0 * x

    small = drawn(1, 3, 48, 48)
    model = Cascade(Denoiser(Nobody(), Cosine(), V()), cascade().text, Scale(2, 0.1)).eval()
    whole, tiled = (enlarge(pipeline(model, tile, eta=1.0), small) for tile in (0, 16))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    noise = (whole - bicubic(small, (96, 96))).flatten()
    assert noise.std() > 0.05
    assert torch.corrcoef(noise.unflatten(0, (3, 96, 96))[0, ::48].flatten(1))[0, 1].abs() < 0.4  # no row twice


# Back-projection


@pytest.mark.parametrize("factor", [2, 4])
def test_back_projection_brings_a_picture_to_its_input(factor: int) -> None:
    small = from_uint8(to_uint8(0.7 * bicubic(drawn(2, 3, 6, 6), (16, 16))))
    large = bicubic(small, (16 * factor, 16 * factor)) + 0.1 * drawn(2, 3, 16 * factor, 16 * factor, seed=1)
    errors = []
    for times in range(6):
        projected = back_projected(large, small, times)
        errors.append((bicubic(projected, (16, 16)) - small).square().mean().sqrt())
    assert torch.equal(back_projected(large, small, 0), large)
    assert all(after < 0.8 * before for before, after in pairwise(errors))
    assert hold_to_input(projected, small)["consistency"].min() > 65


def test_back_projection_is_the_last_thing_done() -> None:
    small, model = from_uint8(to_uint8(0.3 * drawn(3, 3, 8, 8))), cascade(awake=True)
    free, bound = (enlarge(pipeline(model, back_projection=times), small) for times in (0, 2))
    torch.testing.assert_close(bound, back_projected(free, small, 2))
