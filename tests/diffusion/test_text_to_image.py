"""The model that is trained: its text reaches the picture, word order included."""

from collections.abc import Callable

import torch

from diffusion.condition import Cond
from diffusion.text_to_image import TextToImage

Tiny = Callable[..., TextToImage]
PROMPTS = ["a red circle above a blue square", "a blue circle above a red square"]  # the same words, other bindings

X, T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])


def test_the_trained_pass_is_the_denoisers(tiny: Tiny) -> None:
    model = tiny()
    output, scales = model(X, T, model.text.prepare(PROMPTS))
    expected, same = model.denoiser.predict(X, T, model.encode(PROMPTS))
    torch.testing.assert_close((output, *scales), (expected, *same))


def test_training_reaches_the_text_encoder_and_sampling_does_not(tiny: Tiny) -> None:
    model = tiny()
    assert not model.encode(PROMPTS).tokens.requires_grad
    model(X, T, model.text.prepare(PROMPTS))[0].square().sum().backward()
    for name in ("token_embedding.weight", "positional_embedding"):
        assert model.text.transformer.get_parameter(name).grad.any()


def test_word_order_reaches_the_picture_through_the_tokens(tiny: Tiny) -> None:
    """The pooled vector is held equal, so only cross-attention can tell the two sentences apart."""
    model = tiny()
    cond = model.encode(PROMPTS)
    cond = Cond(cond.tokens, cond.mask, cond.pooled[:1].expand_as(cond.pooled))
    with torch.no_grad():
        one, other = model.denoiser(X[:1].expand(2, -1, -1, -1), T[:1].expand(2), cond)
    assert (one - other).abs().max() > 1e-3 * one.std()


def test_the_empty_prompt_is_a_condition_like_any_other(tiny: Tiny) -> None:
    null = tiny().encode(["", PROMPTS[0]])
    assert null.mask[0].sum() == 2  # start and end
    assert null.tokens.isfinite().all()
    assert null.pooled.isfinite().all()
    assert not torch.allclose(null.pooled[0], null.pooled[1])
