"""The building blocks: closed forms of attention, identity at birth, what each part can tell apart."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lab.layers import (
    Attention,
    Downsample,
    FeedForward,
    LevelEmbedding,
    PlaceEmbedding,
    ResidualBlock,
    Transformer,
    Upsample,
    attend,
    zero_init,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> nn.Module:
    """What the module might be after some training: no branch is closed."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


B, N, L, M, D = 2, 3, 5, 7, 11  # batch, heads, queries, keys, width


# --- attention


def test_attend_is_the_softmax_of_products_written_out() -> None:
    query, key, value = drawn(B, N, L, D), drawn(B, N, M, D, seed=1), drawn(B, N, M, D, seed=2)
    mask = torch.rand(B, M, generator=torch.Generator().manual_seed(3)) < 0.6
    mixed = attend(query, key, value, mask)
    for b, n, i in ((0, 0, 0), (1, 2, 4)):
        weights = [math.exp(query[b, n, i] @ key[b, n, j] / math.sqrt(D)) * bool(mask[b, j]) for j in range(M)]
        expected = sum(weight * value[b, n, j] for j, weight in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(mixed[b, n, i], expected)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_are_the_fused_kernel(masked: bool) -> None:
    query, key, value = drawn(B, N, L, D), drawn(B, N, M, D, seed=1), drawn(B, N, M, D, seed=2)
    mask = torch.arange(M).expand(B, -1) < 4 if masked else None
    fused = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=None if mask is None else mask[:, None, None]
    )
    torch.testing.assert_close(attend(query, key, value, mask), fused)


def test_masked_keys_have_no_influence_at_all() -> None:
    query, key, value = drawn(B, N, L, D), drawn(B, N, M, D, seed=1), drawn(B, N, M, D, seed=2)
    mask = torch.arange(M).expand(B, -1) < 4
    whole, cut = attend(query, key, value, mask), attend(query, key[:, :, :4], value[:, :, :4])
    torch.testing.assert_close(whole, cut)
    key[:, :, 4:], value[:, :, 4:] = 1e6, -1e6
    assert torch.equal(attend(query, key, value, mask), whole)


def test_cross_attention_gives_each_place_its_own_mixture_of_tokens() -> None:
    """With one vector repeated in place of tokens every place gets the same: the sign of attention in name only."""
    attention = awake(Attention(12, 3, context=D))
    places, tokens = drawn(B, L, 12), drawn(B, M, D, seed=1)
    assert attention(places, tokens).std(dim=1).min() > 1e-3
    repeated = tokens[:, :1].expand(-1, M, -1)
    torch.testing.assert_close(
        attention(places, repeated).std(dim=1), torch.zeros(B, 12, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_self_attention_follows_a_permutation_of_its_sequence() -> None:
    attention, x, order = awake(Attention(12, 3)), drawn(B, L, 12), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


def test_heads_attend_apart() -> None:
    """Each head mixes its own share of the width: the value of one head reaches no other."""
    attention = awake(Attention(12, 3))
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(12))
        attention.out.bias.zero_()
    x, before = drawn(B, L, 12), attention(drawn(B, L, 12))
    with torch.no_grad():
        attention.key_value.weight[12 + 4 : 12 + 8] += 1  # values of the second of three heads
    changed = (attention(x) - before).abs().amax(dim=(0, 1)) > 1e-9
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4


# --- birth


def test_zero_init_silences_a_layer() -> None:
    for layer in (nn.Conv2d(3, 5, 3), nn.Linear(3, 5), nn.Linear(3, 5, bias=False)):
        assert zero_init(layer) is layer
        assert not any(parameter.any() for parameter in layer.parameters())


EMBEDDING, TOKENS, MASK = drawn(B, 9), drawn(B, M, D), torch.ones(B, M, dtype=torch.bool)


@pytest.mark.parametrize(
    ("block", "given"),
    [
        (lambda: ResidualBlock(32, 32, 9), (EMBEDDING,)),
        (lambda: ResidualBlock(32, 32, 0), ()),
        (lambda: Transformer(32, 4, D), (TOKENS, MASK)),
        (lambda: Transformer(32, 4, None), (None, None)),
    ],
    ids=["residual", "residual-unconditional", "transformer", "self-attention"],
)
def test_blocks_are_the_identity_at_birth_and_not_for_ever(
    block: Callable[[], nn.Module], given: tuple[Tensor, ...]
) -> None:
    x, born = drawn(B, 32, 3, 5), block().double()
    assert torch.equal(born(x, *given), x)
    born(x, *given).square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in born.parameters())
    assert not torch.allclose(awake(born)(x, *given), x)


def test_attention_and_feed_forward_add_nothing_at_birth() -> None:
    x = drawn(B, L, 12)
    assert not Attention(12, 3).double()(x).any()
    assert not FeedForward(12).double()(x).any()


# --- maps


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 7)])
def test_shapes_on_mutually_prime_sizes(height: int, width: int) -> None:
    x = drawn(B, 16, height, width)
    assert awake(ResidualBlock(16, 48, 9))(x, EMBEDDING).shape == (B, 48, height, width)
    assert awake(Transformer(16, 2, D))(x, TOKENS, MASK).shape == x.shape
    assert awake(Upsample(16, 48))(x).shape == (B, 48, 2 * height, 2 * width)
    assert awake(Downsample(16, 48))(drawn(B, 16, 2 * height, 2 * width)).shape == (B, 48, height, width)


def test_residual_block_hears_its_embedding_per_sample() -> None:
    block, x = awake(ResidualBlock(16, 16, 9)), drawn(1, 16, 3, 5).expand(2, -1, -1, -1)
    one, other = block(x, EMBEDDING)
    assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(block(x, EMBEDDING.flip(0))[0], other)


def test_film_scales_and_shifts() -> None:
    """Scale -1 leaves the shift alone in the branch, so what came in is forgotten there."""
    block, x = awake(ResidualBlock(16, 16, 9)), drawn(B, 16, 3, 5)
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.copy_(torch.cat([torch.full((16,), -1.0), torch.full((16,), 0.3)]))
    branch = block.conv2(nn.functional.silu(torch.full_like(x, 0.3)))
    torch.testing.assert_close(block(x, EMBEDDING), x + branch)


def test_a_transformer_mixes_places_of_one_image_and_no_others() -> None:
    """And knows rows from columns: the map comes back the way it went in."""
    block, x = awake(Transformer(16, 2, D)), drawn(B, 16, 3, 5)
    before = block(x, TOKENS, MASK)
    poked = x.clone()
    poked[0, 0, 1, 2] += 1  # one channel: the norm takes away what is added to all alike
    change = (block(poked, TOKENS, MASK) - before).abs().amax(dim=1)
    assert change[0].min() > 1e-9
    assert not change[1].any()
    assert change[0].argmax() == 1 * 5 + 2


def test_places_choose_among_the_words_where_the_picture_says_nothing() -> None:
    """On a map that is the same everywhere the cross-attention tells places apart, and nothing else does."""
    block, blank = awake(Transformer(16, 2, D)), drawn(B, 16, 1, 1).expand(-1, -1, 3, 5).contiguous()
    assert block(blank, TOKENS, MASK).std(dim=(2, 3)).max() > 1e-2
    one_word = MASK.clone()
    one_word[:, 1:] = False  # nothing to choose from
    assert block(blank, TOKENS, one_word).std(dim=(2, 3)).max() < 1e-12
    assert awake(Transformer(16, 2, None))(blank, None, None).std(dim=(2, 3)).max() < 1e-12


def test_places_are_heard_by_queries_alone() -> None:
    """They are added to what is asked with, after the norm, and to no key or value."""
    attention, x, places = awake(Attention(12, 3)), drawn(B, L, 12), drawn(1, L, 12, seed=1)
    h = attention.norm(x)
    query = (attention.query(h + places)).view(B, L, 3, 4).transpose(1, 2)
    key, value = (part.view(B, L, 3, 4).transpose(1, 2) for part in attention.key_value(h).chunk(2, dim=-1))
    expected = attention.out(attend(query, key, value).transpose(1, 2).reshape(B, L, 12))
    torch.testing.assert_close(attention(x, places=places), expected)


def test_upsampling_repeats_pixels_before_its_convolution() -> None:
    up = Upsample(2, 2).double()
    with torch.no_grad():
        nn.init.dirac_(up.conv.weight)
        up.conv.bias.zero_()
    x = drawn(1, 2, 3, 5)
    torch.testing.assert_close(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


# --- embeddings


def test_levels_are_told_apart_finely_and_smoothly() -> None:
    embed = LevelEmbedding(64).double()
    angles = torch.linspace(0, math.pi / 2, 400, dtype=torch.float64)
    with torch.no_grad():
        embed.mlp = nn.Identity()
        waves = embed(angles)
    torch.testing.assert_close(waves.square().mean(dim=1), torch.ones(400, dtype=torch.float64))  # unit variance
    apart = torch.cdist(waves, waves) + 1e3 * torch.eye(400)
    assert apart.min() > 0.5
    assert (embed(angles + 1e-5) - waves).norm(dim=1).max() < 0.02


def test_a_level_embedding_is_two_layers_over_its_waves() -> None:
    embed = awake(LevelEmbedding(16))
    out = embed(torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64))
    assert out.shape == (3, 16)
    assert torch.pdist(out).min() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (16, 16)])
def test_every_place_has_its_own_vector(height: int, width: int) -> None:
    places = awake(PlaceEmbedding(24))(height, width)
    assert places.shape == (1, 24, height, width)
    if height * width > 1:
        assert torch.pdist(places[0].flatten(1).T).min() > 1e-2


def test_a_place_is_the_same_at_any_resolution() -> None:
    """The middle of a 3 x 5 map is the middle of a 9 x 15 map."""
    embed = awake(PlaceEmbedding(24))
    torch.testing.assert_close(embed(9, 15)[:, :, 1::3, 1::3], embed(3, 5), rtol=1e-5, atol=1e-5)


def test_rows_and_columns_are_told_apart() -> None:
    places = awake(PlaceEmbedding(24))(4, 4)[0]
    assert (places - places.transpose(1, 2)).abs().amax(dim=0)[~torch.eye(4, dtype=torch.bool)].min() > 1e-2
