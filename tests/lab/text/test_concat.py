"""Several encoders as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.config import parse
from lab.runtime import CPU
from lab.text import selection
from lab.text.concat import ConcatConfig, ConcatText
from lab.text.encoder import placed
from tests.encoders import CAPTIONS

Folder = Callable[[str], Path]


@pytest.fixture
def made(encoder_folder: Folder) -> ConcatConfig:
    """A small CLIP that is trained, a frozen BERT with a learned null, a small T5 that is trained."""
    parts: list[dict[str, Any]] = [
        {"kind": "clip", "width": 24, "layers": 1, "heads": 2, "context": 12},
        {"kind": "auto", "pretrained": str(encoder_folder("bert")), "context": 9, "cache": None, "null": "learned"},
        {"kind": "t5", "width": 8, "layers": 1, "heads": 2, "context": 20},
    ]
    found = selection.complete(parse({"parts": parts}, ConcatConfig), None, lambda: CAPTIONS, allow_download=False)
    assert isinstance(found, ConcatConfig)
    return found


def build(config: ConcatConfig) -> ConcatText:
    torch.manual_seed(0)
    built = selection.build(config, CPU)
    assert isinstance(built, ConcatText)
    return built.eval()


def test_tokens_stand_one_after_the_other_and_pooled_vectors_side_by_side(made: ConcatConfig) -> None:
    encoder = build(made)
    assert (encoder.width, encoder.pooled_width, encoder.num_prepared) == (24, 24 + 16 + 8, 2 + 3 + 2)
    states = encoder(placed(encoder.prepare(CAPTIONS), torch.device("cpu")))
    begin, beside = 0, 0
    for part in encoder._encoders:
        own = part(part.prepare(CAPTIONS))
        end, width = begin + own.tokens.shape[1], own.tokens.shape[2]
        assert torch.equal(states.tokens[:, begin:end, :width], own.tokens)
        assert not states.tokens[:, begin:end, width:].any()
        assert torch.equal(states.mask[:, begin:end], own.mask)
        assert torch.equal(states.pooled[:, beside : beside + width], own.pooled)
        begin, beside = end, beside + width
    assert states.tokens.shape[1:] == (12 + 9 + 20, 24)
    assert states.pooled.shape[1] == beside


def test_what_is_trained_is_in_the_model_and_what_is_frozen_is_not(made: ConcatConfig) -> None:
    encoder = build(made)
    encoder(encoder.prepare(CAPTIONS))
    assert {key.split(".")[1] for key in encoder.state_dict()} == {"0", "1", "2"}
    assert [key for key in encoder.state_dict() if key.startswith("parts.1.")] == ["parts.1.null_embedding"]
    assert selection.frozen(encoder) == [encoder.parts[1]]


def test_each_part_knows_what_was_found_for_it(made: ConcatConfig) -> None:
    """A run takes over the words and the weights of the same part, and asks neither the data nor a folder again."""
    words, identity, nothing = made.parts[0].vocabulary, made.parts[1].identity, made.parts[2].identity  # type: ignore[union-attr]
    assert len(words) > 20
    assert identity is not None
    assert nothing is None
    bare = [
        made.parts[0].model_copy(update={"vocabulary": ()}),
        made.parts[1].model_copy(update={"identity": None, "pretrained": "/gone"}),
        made.parts[2],
    ]
    again = selection.complete(ConcatConfig(parts=tuple(bare)), made, lambda: pytest.fail("asked"), False)
    assert isinstance(again, ConcatConfig)
    assert again.parts[0] == made.parts[0]
    assert again.parts[1].identity == identity


def test_a_model_does_not_understand_other_weights_or_words(made: ConcatConfig) -> None:
    bert = made.parts[1]
    assert bert.identity is not None
    other = bert.model_copy(update={"identity": bert.identity.model_copy(update={"weights": "f" * 64})})
    words = made.parts[0].model_copy(update={"vocabulary": (1, 2, 3)})
    lines = selection.differences(made, ConcatConfig(parts=(words, other, made.parts[2])))
    assert len(lines) == 2
    assert " tokens there and 3 here, 0 of them alike" in lines[0]
    assert f"({bert.identity.weights[:16]}) there and of {bert.pretrained} ({'f' * 16}) here" in lines[1]
    assert selection.differences(made, made) == []
