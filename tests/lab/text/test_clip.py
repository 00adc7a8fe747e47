"""CLIP's text transformer over the words of the data: masks, word order, unknown words."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lab.text.clip import PAD, UNKNOWN, ClipConfig, ClipText, _tokenizer, vocabulary

CAPTIONS = ["a red circle above a blue square", "two green rings"]
WORDS = vocabulary(CAPTIONS)


def encoder(*, causal: bool = False) -> ClipText:
    torch.manual_seed(0)
    return (
        ClipText(ClipConfig(width=24, heads=3, layers=2, context=12, causal=causal, vocabulary=WORDS)).double().eval()
    )


def encode(text: ClipText, *prompts: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return text(text.prepare(prompts))


either_way = pytest.mark.parametrize("causal", [False, True])


def test_the_vocabulary_is_what_the_captions_say_and_the_two_ends() -> None:
    tokenizer = _tokenizer()
    said = {tokenizer.decode([token]).strip() for token in WORDS}
    assert said == {
        "a",
        "red",
        "circle",
        "above",
        "blue",
        "square",
        "two",
        "green",
        "rings",
        "<start_of_text>",
        "<end_of_text>",
    }
    assert list(WORDS) == sorted(set(WORDS))
    assert vocabulary(reversed(CAPTIONS)) == WORDS


def test_the_embedding_has_a_row_per_word_of_the_data_and_two_more() -> None:
    """Nothing walks over the 49,408 rows of the published table."""
    assert encoder().transformer.token_embedding.weight.shape == (len(WORDS) + 2, 24)


def test_tokens_are_start_text_end_and_padding() -> None:
    ids, mask = encoder().prepare(["a red a", "", "A  RED\ta"])
    assert ids.shape == (3, 12)
    assert ids.dtype == torch.int64
    start, a, red, again, end, *padding = ids[0].tolist()
    assert a == again
    assert len({start, a, red, end, PAD, UNKNOWN}) == 6
    assert padding == [PAD] * 7
    assert torch.equal(mask, ids != PAD)
    assert ids[1].tolist() == [start, end] + [PAD] * 10
    assert torch.equal(ids[2], ids[0])


def test_unseen_words_share_the_row_unknown() -> None:
    text = encoder()
    seen, *unseen = text.prepare(["a red circle", "a purple circle", "a yellow circle"]).ids.tolist()
    assert UNKNOWN not in seen
    assert all(line.count(UNKNOWN) == 1 and line[2] == UNKNOWN for line in unseen)
    assert torch.equal(encode(text, "a purple circle").tokens, encode(text, "a yellow circle").tokens)
    assert not torch.allclose(encode(text, "a red circle").tokens, encode(text, "a yellow circle").tokens)


def test_a_long_prompt_is_cut_and_keeps_its_end() -> None:
    text = encoder()
    ids = text.prepare(["a red circle " * 9, "a"]).ids
    assert (ids[0] != PAD).all()
    assert ids[0, -1] == ids[1, 2]
    assert encode(text, "a red circle " * 9).tokens.isfinite().all()


@either_way
def test_masked_tokens_influence_nothing(causal: bool) -> None:
    """Whatever the padding's row holds: token states under the mask and the pooled vector stay, bit for bit."""
    text = encoder(causal=causal)
    before = encode(text, *CAPTIONS, "")
    with torch.no_grad():
        text.transformer.token_embedding.weight[PAD] = 1e3
    after = encode(text, *CAPTIONS, "")
    assert torch.equal(before.mask, after.mask)
    assert torch.equal(before.tokens[before.mask], after.tokens[after.mask])
    assert torch.equal(before.pooled, after.pooled)


@either_way
def test_an_encoding_does_not_depend_on_its_batch(causal: bool) -> None:
    text = encoder(causal=causal)
    together = encode(text, *CAPTIONS, "")
    for i, prompt in enumerate([*CAPTIONS, ""]):
        for part, alone in zip(together, encode(text, prompt), strict=True):
            torch.testing.assert_close(part[i], alone[0], rtol=1e-12, atol=1e-12)


@either_way
def test_word_order_changes_every_token_behind_it(causal: bool) -> None:
    """Two sentences of the same words: the same word in the same place has another state, so they can be told apart."""
    one, other = encode(
        encoder(causal=causal), "a red circle above a blue square", "a blue circle above a red square"
    ).tokens
    for place in (3, 4, 5, 7, 8):  # circle, above, a, square, end
        assert (one[place] - other[place]).abs().max() > 1e-3


def test_the_same_word_has_another_state_in_another_place() -> None:
    one = encode(encoder(), "red red red").tokens[0, 1:4]
    assert torch.pdist(one).min() > 1e-2


def test_causal_tokens_see_only_what_stands_before_them() -> None:
    prompts = ("a red circle", "a red square")
    one, other = encode(encoder(causal=True), *prompts).tokens
    torch.testing.assert_close(one[:3], other[:3], rtol=1e-12, atol=1e-12)
    one, other = encode(encoder(causal=False), *prompts).tokens
    assert (one[:3] - other[:3]).abs().amax(dim=1).min() > 1e-4


@either_way
def test_plain_products_are_taken_on_a_cpu_and_give_what_the_fused_kernel_gives(causal: bool) -> None:
    text = encoder(causal=causal)
    prepared = text.prepare(CAPTIONS)
    allowed: list[bool] = []
    text.transformer.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cuda.flash_sdp_enabled()))
    with torch.no_grad():
        states, (_, fused) = text(prepared), text.transformer(prepared.ids)
    assert allowed == [False, True]
    torch.testing.assert_close(states.tokens[states.mask], fused[states.mask], rtol=1e-12, atol=1e-12)


def test_the_wide_layer_of_a_block_has_the_width_asked_for() -> None:
    text = ClipText(ClipConfig(width=24, heads=3, mlp_ratio=2, vocabulary=WORDS))
    assert {block.mlp.c_fc.out_features for block in text.transformer.transformer.resblocks} == {48}


def test_pooled_is_the_state_of_the_end_token() -> None:
    states = encode(encoder(), "a red circle", "")
    torch.testing.assert_close(states.pooled, torch.stack([states.tokens[0, 4], states.tokens[1, 1]]))
    assert states.mask.sum(dim=1).tolist() == [5, 2]


def test_positions_start_as_large_as_words() -> None:
    transformer = encoder().transformer
    words, places = transformer.token_embedding.weight.std(), transformer.positional_embedding.std()
    assert 0.8 < (places / words).item() < 1.25


def test_without_a_vocabulary_nothing_is_built() -> None:
    with pytest.raises(AssertionError, match="vocabulary is filled in"):
        ClipText(ClipConfig())


@pytest.mark.parametrize("wrong", [{"context": 78}, {"context": 3}, {"layers": 0}, {"heads": 0}, {"heads": 3}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ClipConfig.model_validate(wrong)
