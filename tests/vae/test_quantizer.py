"""Quantised latents: the nearest code, a gradient that passes straight through, codes that are running means."""

import math

import pytest
import torch
from einops import rearrange
from pydantic import ValidationError
from torch import Tensor

from lab.randomness import key
from vae.quantizer import Codebook, FiniteScalar, VectorQuantized, use

CONFIG = VectorQuantized(channels=3, codes=5, commitment=0.3, decay=0.9, dead_below=0.0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def codebook(config: VectorQuantized = CONFIG) -> Codebook:
    """A codebook that has learned from one step."""
    torch.manual_seed(0)
    made = Codebook(config).double()
    made.learn(drawn(40, config.channels, seed=9), key(0, "revival", 0))
    return made


def test_every_position_takes_its_nearest_code() -> None:
    made, features = codebook(), drawn(2, 3, 4, 6)
    posterior = made(features)
    for b, y, x in ((0, 0, 0), (1, 3, 5), (1, 2, 1)):
        distances = [float((features[b, :, y, x] - code).norm()) for code in made.codes]
        torch.testing.assert_close(posterior.mean[b, :, y, x], made.codes[distances.index(min(distances))])
    assert not posterior.std.any()


def test_the_gradient_passes_straight_through_and_the_commitment_has_its_own() -> None:
    made, features, weight = codebook(), drawn(2, 3, 4, 6).requires_grad_(), drawn(2, 3, 4, 6, seed=1)
    posterior = made(features)
    (through,) = torch.autograd.grad((posterior.mean * weight).sum(), features, retain_graph=True)
    torch.testing.assert_close(through, weight)
    torch.testing.assert_close(posterior.penalty, 0.3 * (features - posterior.mean).square().mean(dim=(1, 2, 3)))
    (pulled,) = torch.autograd.grad(posterior.penalty.sum(), features)
    torch.testing.assert_close(pulled, 0.3 * 2 * (features - posterior.mean).detach() / features[0].numel())


def test_the_codes_are_running_means_of_the_vectors_that_chose_them() -> None:
    made = codebook()
    uses, sums = made.uses.tolist(), made.sums.clone()
    for step in range(1, 4):
        vectors = drawn(40, 3, seed=step)
        chosen = [min(range(5), key=lambda k, v=v: float((v - made.codes[k]).norm())) for v in vectors]
        made.learn(vectors, key(0, "revival", step))
        for k in range(5):
            own = [v for v, choice in zip(vectors, chosen, strict=True) if choice == k]
            uses[k] = 0.9 * uses[k] + 0.1 * len(own)
            sums[k] = 0.9 * sums[k] + 0.1 * sum(own, start=torch.zeros(3).double())
            torch.testing.assert_close(made.codes[k], sums[k] / uses[k])


def test_before_the_first_step_codes_come_from_the_data() -> None:
    made = Codebook(VectorQuantized(channels=3, codes=32, dead_below=0.03)).double()
    vectors = drawn(40, 3) + 100  # far from where codes are born, so that one code is nearest to all
    made.learn(vectors, key(0, "revival", 0))
    born = sum(bool((vectors == code).all(dim=1).any()) for code in made.codes)
    assert born == 31
    assert len(made.codes.unique(dim=0)) == 32


def test_a_dead_code_begins_anew_at_a_vector_of_the_step_and_the_others_stay() -> None:
    made = codebook(CONFIG.model_copy(update={"dead_below": 0.2}))
    made.codes[2], made.sums[2], made.uses[2] = 1000.0, 1.0, 0.001
    before = made.nearest(drawn(40, 3, seed=5))
    others = [k for k in range(5) if k != 2 and (before == k).any()]
    one, other = codebook(), codebook()
    for twin in (one, other):
        twin.load_state_dict(made.state_dict())
    vectors = drawn(40, 3, seed=5)
    made.learn(vectors, key(0, "revival", 7))
    one.config = made.config
    one.learn(vectors, key(0, "revival", 7))
    other.learn(vectors, key(0, "revival", 7))  # revives nothing
    assert (vectors == made.codes[2]).all(dim=1).any()
    assert torch.equal(one.codes, made.codes)
    assert torch.equal(other.codes[others], made.codes[others])
    assert made.codes[2].norm() < 10 < other.codes[2].norm()


@pytest.mark.parametrize(("uses", "perplexity"), [([1.0] * 5, 5.0), ([3.0, 0, 0, 0, 0], 1.0), ([2.0, 2, 0, 0, 0], 2.0)])
def test_the_perplexity_counts_the_codes_in_use(uses: list[float], perplexity: float) -> None:
    made = codebook()
    made.uses.copy_(torch.tensor(uses))
    torch.testing.assert_close(made(drawn(2, 3, 4, 4)).metrics["perplexity"], torch.full((2,), perplexity).double())


@pytest.mark.parametrize("levels", [(3,), (4, 5), (8, 5, 5, 5)])
def test_finite_scalars_reach_every_level_and_no_other(levels: tuple[int, ...]) -> None:
    config = FiniteScalar(levels=levels)
    features = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    latent = config(features.expand(1, len(levels), 1, -1)).mean[0, :, 0]
    for channel, count in zip(latent, levels, strict=True):
        expected = [(k - count // 2) / (count // 2) for k in range(count)]
        torch.testing.assert_close(channel.unique(), torch.tensor(expected).double())
    for middle in (-0.05, 0.05):  # what lies at 0 stays at 0
        assert not config(torch.full((1, len(levels), 1, 1), middle)).mean.any()


def test_the_gradient_of_finite_scalars_is_that_of_the_tanh() -> None:
    config, features = FiniteScalar(levels=(5,)), drawn(1, 1, 3, 3).requires_grad_()
    (slope,) = torch.autograd.grad(config(features).mean.sum(), features)
    half = 4 * 0.999 / 2
    torch.testing.assert_close(slope, half / 2 * (1 - features.detach().tanh().square()))
    assert math.prod(config.levels) == 5


@pytest.mark.parametrize("levels", [(2, 5), ()])
def test_too_few_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="levels"):
        FiniteScalar(levels=levels)


def test_vectors_for_learning_keep_the_order_of_the_positions() -> None:
    features = drawn(2, 3, 4, 6)
    vectors = codebook()(features).metrics["vectors"]
    torch.testing.assert_close(rearrange(vectors, "b (h w) c -> b c h w", h=4), features)


def test_the_use_of_a_codebook_is_counted() -> None:
    made = Codebook(CONFIG)
    numbers = torch.tensor([[0, 0, 1, 2], [1, 0, 0, 2]])
    latents = rearrange(made.codes[numbers], "b l c -> b c 1 l")
    found = use(latents + 1e-6, made)
    assert (found.num_codes, found.used) == (5, 3)
    assert found.perplexity == pytest.approx(2**1.5)
    assert use(made(drawn(50, 3, 8, 8).float()).mean, made).used == 5  # not as many as roundings of the gradient's path


def test_the_use_of_finite_scalars_is_counted() -> None:
    config = FiniteScalar(levels=(4, 3))
    found = use(config(10 * drawn(64, 2, 8, 8)).mean, config)
    assert (found.num_codes, found.used) == (12, 12)
    assert 6 < found.perplexity < 12
    assert use(config(drawn(1, 2, 1, 1)).mean, config).used == 1
