"""The open_clip door: CLIP's tokenizer and text transformer, small and trained jointly, or pretrained and frozen."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.config import Config
from lab.text.encoder import TextStates

PAD, UNKNOWN = 0, 1  # rows of the compact embedding before the first token that the data uses


class ClipConfig(Config):
    """A CLIP text transformer built from its architecture and trained with the model.

    Attributes:
        width, layers, heads: of the transformer.
        mlp_ratio: width of the layer between each block's two linear layers, in multiples of ``width``.
        context: tokens per prompt, start and end included; longer prompts are cut.
        causal: whether a token sees only what stands before it, as in the published CLIP. It makes order an input: the
            second noun has seen the relation, the first has not, and places are bound to nouns several times sooner
            (docs/log.md, 2026-11-25, "where, and of what").
        vocabulary: the BPE tokens that have a row of their own, filled in from the data when a run starts; others share
            the row "unknown", so that nothing walks over the 49,408 rows of which a data set uses a few hundred.
    """

    kind: Literal["clip"] = "clip"
    width: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    context: int = Field(32, ge=4, le=77)
    causal: bool = True
    vocabulary: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "ClipConfig":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=65536)
def _bpe(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(text))


def vocabulary(captions: Iterable[str]) -> tuple[int, ...]:
    """Collect the BPE tokens that captions use, sorted, start and end tokens included."""
    tokenizer = _tokenizer()
    used = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for caption in captions:
        used.update(_bpe(caption))
    return tuple(sorted(used))


class ClipText(nn.Module):
    """CLIP's text transformer over the tokens that the data uses.

    Args:
        config: its shape; ``vocabulary`` must be filled in.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        assert config.vocabulary, "the vocabulary is filled in from the data before the encoder is built"
        self.width = self.pooled_width = config.width
        self.context = config.context
        self._row = {token: row for row, token in enumerate(config.vocabulary, start=UNKNOWN + 1)}
        self.transformer = TextTransformer(
            context_length=config.context,
            vocab_size=len(config.vocabulary) + UNKNOWN + 1,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            mlp_ratio=config.mlp_ratio,
            no_causal_mask=not config.causal,
            use_pad_mask=True,
            pad_id=PAD,
            proj_type="none",
            pool_type="none",
            output_tokens=True,
        )
        # open_clip starts positions at half the size of token embeddings; as large as those, word order binds several
        # times sooner.
        nn.init.normal_(self.transformer.token_embedding.weight, std=config.width**-0.5)
        nn.init.normal_(self.transformer.positional_embedding, std=config.width**-0.5)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Give (b, context) int64 rows of the embedding: start, text, end, padding."""
        tokenizer = _tokenizer()
        ids = torch.full((len(prompts), self.context), PAD, dtype=torch.int64)
        for line, prompt in zip(ids, prompts, strict=True):
            tokens = (tokenizer.sot_token_id, *_bpe(prompt)[: self.context - 2], tokenizer.eot_token_id)
            line[: len(tokens)] = torch.tensor([self._row.get(token, UNKNOWN) for token in tokens])
        return ids

    def forward(self, ids: Tensor) -> TextStates:
        """Encode (b, l) ids; the pooled vector is the state of the end token."""
        mask = ids != PAD
        # On a CPU the backward pass of the fused attention takes longer than all else here; plain products do not.
        with sdpa_kernel(SDPBackend.MATH) if ids.device.type == "cpu" else nullcontext():
            _, tokens = self.transformer(ids)
        last = mask.sum(dim=1) - 1
        return TextStates(tokens, mask, tokens[torch.arange(len(ids), device=ids.device), last])
