"""Encoders that are not trained: their states are finished before training sees them, and may come from a cache.

A frozen encoder is no part of the model: its weights are in no checkpoint, no average and no optimizer. It is loaded
when the first caption is not in the cache, so a run whose captions all are never loads it. The states of a caption are
a function of the caption alone: it passes the encoder among a fixed number of rows, padded to a length that its own
number of tokens decides, and with a fixed precision, whatever it was asked for together with.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from lab.cache import SHARD, TensorCache
from lab.config import Config
from lab.errors import NonFinite
from lab.text.encoder import Prepared, TextEncoder, TextStates
from lab.text.weights import Identity

ROWS = 16  # captions per pass; matrix products round differently with other numbers
LENGTHS = 16  # captions are padded to multiples of so many tokens
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PretrainedConfig(Config):
    """What encoders with weights from elsewhere have in common.

    Attributes:
        pretrained: whose weights; a folder or a name, see the kind.
        frozen: whether they stay as they are. A frozen encoder is no part of checkpoints; one that is trained on goes
            on from these weights. One without ``pretrained`` is built small and always trained.
        null: of a frozen encoder: what a dropped caption turns into, the states of the empty prompt, or one learned
            token.
        precision: of a frozen encoder's own arithmetic.
        stored: number type of a frozen encoder's states, in the cache and out of it.
        cache: folder of finished states, shared by all runs; none if null.
        identity: of the weights, filled in when a run starts.
    """

    pretrained: str | None = Field(None, min_length=1)
    frozen: bool = True
    null: Literal["empty", "learned"] = "empty"
    precision: Literal["fp32", "bf16"] = "fp32"
    stored: Literal["fp16", "bf16", "fp32"] = "fp16"
    cache: str | None = "data/cache/text"
    identity: Identity | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether its states are finished before training sees them."""
        return self.pretrained is not None and self.frozen

    @property
    def records(self) -> Path | None:
        """Where hashes of weights are kept."""
        return Path(self.cache) / "hashes" if self.cache else None

    @model_validator(mode="after")
    def _only_where_frozen(self) -> Self:
        if not self.is_frozen:
            self.keep_default("is for a frozen encoder, and this one is trained", "null", "precision", "stored")
        return self

    def keep_default(self, why: str, *settings: str) -> None:
        """Make sure that settings which would do nothing are not given.

        Raises:
            ValueError: one is given; the line says why it would do nothing.
        """
        for setting in settings:
            default, value = type(self).model_fields[setting].default, getattr(self, setting)
            if value != default:
                raise ValueError(f"{setting}={value} {why}: leave it at {default}")


class Encodings:
    """The states of captions by a frozen encoder: from the cache, or computed. Copies of a model share one.

    Args:
        config: its settings, with the identity filled in.
        load: gives the encoder in float32 on the CPU; called once, and only when a caption is not in the cache.
        device: where it computes.
    """

    def __init__(self, config: PretrainedConfig, load: Callable[[], TextEncoder], device: torch.device) -> None:
        self.config, self._load, self._device = config, load, device

    def __deepcopy__(self, memo: object) -> "Encodings":
        return self

    @cached_property
    def cache(self) -> TensorCache | None:
        """Where states are kept; opened, and verified, when it is first asked for."""
        return TensorCache(Path(self.config.cache) / name_of(self.config)) if self.config.cache else None

    @cached_property
    def _encoder(self) -> TextEncoder:
        with torch.random.fork_rng():  # a library may draw numbers before it overwrites them
            encoder = self._load()
        assert isinstance(encoder, nn.Module)
        encoder.to(self._device, DTYPES[self.config.precision]).eval().requires_grad_(False)
        return encoder

    def of(self, captions: Iterable[str]) -> Mapping[str, Tensor]:
        """Give the states of captions, each (1 + l, d): the pooled vector, then the tokens.

        Raises:
            NonFinite: some are not, in the number type that they are stored in.
            StorageFailed: the disk of the cache is full or refuses.
        """
        captions, cache = list(dict.fromkeys(captions)), self.cache
        known = {c: e for c in captions if cache is not None and (e := cache.get(c)) is not None}
        if missing := [caption for caption in captions if caption not in known]:
            computed = dict(self._encode(missing))
            if cache is not None:
                cache.add(computed)
            known |= computed
        return known

    def count(self, captions: Sequence[str]) -> list[int]:
        """Give the tokens of each caption; the encoder is loaded for it."""
        return self._encoder.count(captions)

    def fill(self, captions: Iterable[str]) -> int:
        """Put captions into the cache, shortest first; a second call goes on where a first one ended.

        Returns:
            How many were not there.

        Raises:
            NonFinite, StorageFailed: as of ``of``; what was written before stays.
        """
        assert self.cache is not None, "text.cache names no folder to fill"
        missing = sorted({c for c in captions if c not in self.cache}, key=lambda caption: (len(caption), caption))
        with tqdm(total=len(missing), desc="encoding captions", unit="caption", disable=None) as bar:
            for begin in range(0, len(missing), SHARD):
                some = missing[begin : begin + SHARD]
                self.cache.add(dict(self._encode(some)))
                bar.update(len(some))
        self.cache.flush()
        return len(missing)

    def _encode(self, captions: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Encode in passes of equal shape; the last rows are repeated where there are too few."""
        ids, mask = self._encoder.prepare(captions)
        counts = mask.sum(dim=1).tolist()
        lengths = [min(math.ceil(count / LENGTHS) * LENGTHS, mask.shape[1]) for count in counts]
        for length in sorted(set(lengths)):
            same = [row for row, own in enumerate(lengths) if own == length]
            for begin in range(0, len(same), ROWS):
                rows = same[begin : begin + ROWS]
                filled = rows + rows[-1:] * (ROWS - len(rows))
                states = self._pass(ids[filled, :length], mask[filled, :length])
                for row, tokens, pooled in zip(rows, states.tokens, states.pooled, strict=False):
                    yield captions[row], self._entry(captions[row], tokens[: counts[row]], pooled)

    @torch.no_grad()
    def _pass(self, ids: Tensor, mask: Tensor) -> TextStates:
        device = self._device
        with torch.autocast(device.type, enabled=False):
            return self._encoder((ids.to(device), mask.to(device)))

    def _entry(self, caption: str, tokens: Tensor, pooled: Tensor) -> Tensor:
        entry = torch.cat((pooled[None], tokens)).to("cpu", DTYPES[self.config.stored])
        if not entry.isfinite().all():
            raise NonFinite(
                f"the states of caption {caption[:80]!r} are not finite in {self.config.stored}: set text.stored=bf16 "
                "or fp32, and text.precision=fp32"
            )
        return entry


class FrozenText(nn.Module):
    """A frozen encoder: the first of the two steps gives finished states, the second passes them on.

    Args:
        config: its settings, with the identity filled in.
        context: tokens per text, l.
        encodings: give the states.
    """

    num_prepared = 3

    def __init__(self, config: PretrainedConfig, context: int, encodings: Encodings) -> None:
        super().__init__()
        assert config.identity is not None, "the identity is found before the encoder is built"
        self.width = self.pooled_width = config.identity.width
        self.context = context
        self.encodings = encodings
        self.stored = DTYPES[config.stored]
        # States of texts have no common scale; what reads them normalises. A learned one begins at that of a norm.
        learned = config.null == "learned"
        self.null_embedding = nn.Parameter(torch.randn(2, self.width)) if learned else None

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt, special ones included."""
        return self.encodings.count(prompts)

    def prepare(self, prompts: Sequence[str]) -> TextStates:
        """Give the states of prompts on the CPU; a text without any token stands for the learned null."""
        known = self.encodings.of(prompt for prompt in prompts if prompt or self.null_embedding is None)
        shape = len(prompts), self.context
        states = TextStates(
            torch.zeros(*shape, self.width, dtype=self.stored),
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(len(prompts), self.pooled_width, dtype=self.stored),
        )
        for prompt, tokens, mask, pooled in zip(prompts, *states, strict=True):
            if prompt in known:
                length = len(known[prompt]) - 1
                pooled[:], tokens[:length], mask[:length] = known[prompt][0], known[prompt][1:], True
        return states

    def forward(self, prepared: Prepared) -> TextStates:
        """Give the states in float32, with the learned null where a text has no token."""
        tokens, mask, pooled = prepared
        tokens, pooled = tokens.float(), pooled.float()
        if self.null_embedding is None:
            return TextStates(tokens, mask, pooled)
        token, whole = self.null_embedding
        is_null = ~mask.any(dim=1, keepdim=True)  # (b, 1)
        first = torch.arange(mask.shape[1], device=mask.device) == 0  # (l,)
        tokens = torch.where((is_null & first)[..., None], token, tokens)
        return TextStates(tokens, mask | (is_null & first), torch.where(is_null, whole, pooled))


def name_of(config: PretrainedConfig) -> str:
    """Name the cache of an encoder: by everything that its states are a function of, beside the caption."""
    told = {"kind", "identity", "layer", "context", "precision", "stored"}
    facts = json.dumps(config.model_dump(mode="json", include=told), sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:32]
