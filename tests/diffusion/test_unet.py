"""The UNet's contracts: sizes, birth, text, positions, taps. Nothing here counts parameters."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.unet import UNet, UNetConfig
from lab.layers import PlaceEmbedding
from lab.runtime import Runtime

CONFIG = UNetConfig(patch=2, widths=(16, 32), depth=1, attention=(0, 1), head_width=16)  # factor 4
CHANNELS, TOKENS, TEXT, POOLED = 5, 7, 11, 13  # mutually prime, so that no axis passes for another


def born(config: UNetConfig = CONFIG) -> UNet:
    torch.manual_seed(0)
    return UNet(config, CHANNELS, TEXT, POOLED).double()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def said(batch: int, real: int = TOKENS) -> Cond:
    mask = torch.arange(TOKENS).expand(batch, -1) < real
    return Cond(drawn(batch, TOKENS, TEXT), mask, drawn(batch, POOLED, seed=2))


@pytest.fixture
def unet(awaken) -> UNet:
    return awaken(born())


X, ANGLE = drawn(3, CHANNELS, 12, 20, seed=3), torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)


def test_it_says_nothing_at_birth() -> None:
    assert torch.equal(born()(X, ANGLE, said(3)), torch.zeros_like(X))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        UNetConfig(patch=1, widths=(16, 32, 48), depth=2, attention=(2,), head_width=16),
        UNetConfig(patch=4, widths=(32,), depth=1, attention=()),
    ],
    ids=["patch-2", "three-levels", "one-level"],
)
def test_any_size_divisible_by_the_factor_works(config: UNetConfig, awaken) -> None:
    unet, f = awaken(born(config)), config.factor
    for height, width in ((f, f), (3 * f, 5 * f), (7 * f, 2 * f)):
        x = drawn(3, CHANNELS, height, width)
        out = unet(x, ANGLE, said(3))
        assert out.shape == x.shape
        assert out.isfinite().all()
        assert out.abs().min() > 0


@pytest.mark.parametrize(("height", "width"), [(12, 18), (10, 20), (2, 4)])
def test_another_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} is not divisible by the network's factor 4"):
        born()(torch.zeros(1, CHANNELS, height, width, dtype=torch.float64), ANGLE[:1], said(1))


def test_images_do_not_see_each_other(unet: UNet) -> None:
    cond = said(3)
    together = unet(X, ANGLE, cond)
    for i in range(3):
        alone = unet(X[i : i + 1], ANGLE[i : i + 1], Cond(*(part[i : i + 1] for part in cond)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


def test_every_input_is_heard(unet: UNet) -> None:
    cond, out = said(3), unet(X, ANGLE, said(3))
    others = [
        (X.flip(0), ANGLE, cond),
        (X, ANGLE.flip(0), cond),
        (X, ANGLE, cond._replace(tokens=cond.tokens.flip(0))),
        (X, ANGLE, cond._replace(pooled=cond.pooled.flip(0))),
        (X, ANGLE, cond._replace(mask=said(3, real=4).mask)),
    ]
    for x, angle, other in others:
        changed = (unet(x, angle, other) - out).abs().amax(dim=(1, 2, 3))
        assert changed[0] > 1e-4
        assert changed[2] > 1e-4


def test_masked_tokens_change_nothing(unet: UNet) -> None:
    cond = said(3, real=4)
    spoiled = cond.tokens.clone()
    spoiled[:, 4:] = 1e3
    assert torch.equal(unet(X, ANGLE, cond._replace(tokens=spoiled)), unet(X, ANGLE, cond))


def test_what_a_token_adds_depends_on_the_place(unet: UNet) -> None:
    """One pooled vector in the place of tokens would add the same vector everywhere, which a bias does as well."""
    cond = said(3)
    other = cond._replace(tokens=cond.tokens.roll(1, dims=0))
    shown: list[Tensor] = []
    blind = torch.zeros_like(X)  # the same everywhere, so only the position can tell places apart
    for text in (cond, other):
        unet(blind, ANGLE, text, lambda name, feature: shown.append(feature) if name == "down0" else None)
    added = shown[1] - shown[0]
    assert added.abs().max() > 1e-3
    assert added.std(dim=(2, 3)).max() > 0.01 * added.abs().max()


def test_positions_are_known_everywhere_not_only_at_the_border(unet: UNet) -> None:
    """Convolutions on a torus have no border to count from: output moves with input, unless places are known."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    f, cond = unet.factor, said(3)

    def moved(image: Tensor) -> Tensor:
        return image.roll((f, 2 * f), dims=(2, 3))

    assert (unet(moved(X), ANGLE, cond) - moved(unet(X, ANGLE, cond))).abs().max() > 1e-2
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, PlaceEmbedding):
                module.linear.weight.zero_()
    torch.testing.assert_close(unet(moved(X), ANGLE, cond), moved(unet(X, ANGLE, cond)), rtol=1e-9, atol=1e-9)


def test_the_tap_names_every_level(unet: UNet) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    tapped = unet(X, ANGLE, said(3), lambda name, feature: seen.update({name: tuple(feature.shape)}))
    assert list(seen.items()) == [
        ("down0", (3, 16, 6, 10)),
        ("middle", (3, 32, 3, 5)),
        ("up0", (3, 16, 6, 10)),
        ("last", (3, 16, 6, 10)),
    ]
    assert (unet.last.width, unet.last.patch) == (16, 2)
    assert torch.equal(tapped, unet(X, ANGLE, said(3)))


def test_depths_say_how_many_blocks_each_level_has() -> None:
    config = UNetConfig(widths=(16, 16, 32), depths=(1, 3), attention=(), middle=2)
    unet = born(config)
    assert [len(stacks) for stacks in unet.down] == [len(stacks) for stacks in unet.up] == [1, 3]
    assert len(unet.middle) == 2
    same = born(config.model_copy(update={"depths": (), "depth": 2})).state_dict()
    explicit = born(config.model_copy(update={"depths": (2, 2), "depth": 1})).state_dict()
    assert same.keys() == explicit.keys()


def test_skips_are_scaled(awaken) -> None:
    """By 0 a level's way up hears nothing of its way down, but through the coarser ones."""
    tapped: dict[float, dict[str, Tensor]] = {}
    for scale in (1.0, 0.5):
        unet, seen = awaken(born(CONFIG.model_copy(update={"skip_scale": scale}))), {}
        heard: list[Tensor] = []
        unet.up[0][0].register_forward_pre_hook(lambda module, inputs, heard=heard: heard.append(inputs[0]))
        unet(X, ANGLE, said(3), seen.__setitem__)
        tapped[scale] = {"down": seen["down0"], "skip": heard[0][:, 16:]}
    assert torch.equal(tapped[1.0]["skip"], tapped[1.0]["down"])
    assert torch.equal(tapped[0.5]["skip"], 0.5 * tapped[0.5]["down"])


def test_pictures_beside_the_state_are_heard_and_not_said(awaken) -> None:
    torch.manual_seed(0)
    unet = awaken(UNet(CONFIG, CHANNELS, TEXT, POOLED, beside=2).double())
    first, other = (torch.cat([X, drawn(3, 2, 12, 20, seed=seed)], dim=1) for seed in (4, 5))
    out = unet(first, ANGLE, said(3))
    assert out.shape == X.shape
    assert (unet(other, ANGLE, said(3)) - out).abs().amin(dim=(1, 2, 3)).max() > 0


def test_no_weight_is_idle(unet: UNet) -> None:
    unet(X, ANGLE, said(3)).square().sum().backward()
    idle = [name for name, parameter in unet.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"widths": ()}, "widths must be positive multiples of 16"),
        ({"widths": (16, 20)}, "multiples of 16, got \\[16, 20\\]"),
        ({"widths": (32, 64), "attention": (2,)}, "attention names level 2, but the levels are 0 to 1"),
        (
            {"widths": (32, 48), "attention": (1,), "head_width": 32},
            "head_width 32 does not divide the 48 channels of level 1",
        ),
        ({"patch": 0}, "greater than or equal to 1"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"widths": (16, 32, 32), "attention": (), "depths": (1,)}, "depths names 1 levels, but beside the coarsest"),
        ({"widths": (16, 32), "attention": (), "depths": (0,)}, "greater than or equal to 1"),
        ({"skip_scale": 0.0}, "greater than 0"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, object], cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        UNetConfig.model_validate(wrong)


def test_recomputing_activations_keeps_fewer_of_them_and_gives_the_same_gradient(awaken) -> None:
    """With dropout: the second pass must draw the same mask."""
    kept, gradients = [], []
    for recompute in (False, True):
        unet = awaken(born(CONFIG.model_copy(update={"dropout": 0.3}))).train()
        Runtime(torch.device("cpu"), recompute=recompute).prepare(unet)
        sizes: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss = unet(X, ANGLE, said(3)).square().mean()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert kept[1] < kept[0] / 3
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].norm() > 0
