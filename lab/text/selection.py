"""Which text encoder: the union of their configurations, what is found out once per run, and how one is built."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import Annotated

from pydantic import Field
from torch import nn

from lab.runtime import Runtime
from lab.text import auto, clip, t5, weights
from lab.text.auto import AutoConfig
from lab.text.clip import ClipConfig, ClipText
from lab.text.concat import AnyPart, ConcatConfig, ConcatText
from lab.text.encoder import TextEncoder
from lab.text.frozen import Encodings, FrozenText, PretrainedConfig
from lab.text.t5 import T5Config
from lab.text.weights import Identity

AnyText = Annotated[ClipConfig | T5Config | AutoConfig | ConcatConfig, Field(discriminator="kind")]


def complete(
    asked: AnyText, known: AnyText | None, captions: Callable[[], Iterable[str]], allow_download: bool
) -> AnyText:
    """Fill in what is found out once per run: the words of the data, and which pretrained weights these are.

    Args:
        asked: may leave them open.
        known: of a run that has begun; what was found then is taken over.
        captions: gives all captions of the data.
        allow_download: whether weights that are not here may be fetched.

    Raises:
        Refused: pretrained weights are nowhere to be found.
    """
    if isinstance(asked, ConcatConfig):
        before = known.parts if isinstance(known, ConcatConfig) else ()
        pairs = list(zip_longest(asked.parts, before))[: len(asked.parts)]
        return asked.model_copy(
            update={"parts": tuple(_complete(part, own, captions, allow_download) for part, own in pairs)}
        )
    return _complete(asked, None if isinstance(known, ConcatConfig) else known, captions, allow_download)


def _complete(
    asked: AnyPart, known: AnyPart | None, captions: Callable[[], Iterable[str]], allow_download: bool
) -> AnyPart:
    if asked.pretrained is not None:
        found = asked.identity or (known.identity if known and known.kind == asked.kind else None)
        return asked.model_copy(update={"identity": found or identify(asked, allow_download)})
    if isinstance(asked, ClipConfig) and not asked.vocabulary:
        words = known.vocabulary if isinstance(known, ClipConfig) else ()
        return asked.model_copy(update={"vocabulary": words or clip.vocabulary(captions())})
    return asked


def identify(config: AnyPart, allow_download: bool) -> Identity:
    """Find out which weights a name stands for here, without loading them.

    Raises:
        Refused: they are nowhere to be found, or not in safetensors.
    """
    assert config.pretrained is not None
    if isinstance(config, ClipConfig):
        return clip.identify(clip.find(config.pretrained, allow_download), config.records)
    return weights.identify(weights.find(config.pretrained, allow_download), config.records)


def build(config: AnyText, runtime: Runtime) -> TextEncoder:
    """Build the encoder of a completed configuration.

    A trained one has fresh weights, or those that it goes on from; of a frozen one nothing is loaded yet.

    Args:
        config: which.
        runtime: where a frozen one computes, and whether its weights may be downloaded.

    Raises:
        Refused: weights that it goes on from are missing, or others than the run knows.
    """
    if isinstance(config, ConcatConfig):
        return ConcatText([build(part, runtime) for part in config.parts])
    if config.is_frozen:
        load = partial(_load, config, runtime.allow_download)
        return FrozenText(config, config.context, Encodings(config, load, runtime.device))
    if config.pretrained is not None:
        return _load(config, runtime.allow_download)
    if isinstance(config, ClipConfig):
        return ClipText(config)
    assert isinstance(config, T5Config)
    return t5.build(config)


def frozen(encoder: nn.Module) -> list[FrozenText]:
    """Give the frozen encoders in a module, whose caches can be filled ahead (``encodings.fill``)."""
    return [module for module in encoder.modules() if isinstance(module, FrozenText)]


def differences(there: AnyText, here: AnyText) -> list[str]:
    """Say why a model that was trained with one encoder does not understand another, a few words each."""
    parts = [text.parts if isinstance(text, ConcatConfig) else (text,) for text in (there, here)]
    return [line for one, other in zip(*parts, strict=False) for line in _differences(one, other)]


def _differences(there: AnyPart, here: AnyPart) -> list[str]:
    lines = []
    if isinstance(there, ClipConfig) and isinstance(here, ClipConfig) and there.vocabulary != here.vocabulary:
        old, new = there.vocabulary, here.vocabulary
        alike = sum(token == own for token, own in zip(old, new, strict=False))
        lines.append(f"text.vocabulary has {len(old)} tokens there and {len(new)} here, {alike} of them alike")
    if there.identity != here.identity:
        names = [_weights_of(config) for config in (there, here)]
        lines.append(f"text.identity is of {names[0]} there and of {names[1]} here")
    return lines


def _weights_of(config: PretrainedConfig) -> str:
    return f"{config.pretrained} ({config.identity.weights[:16]})" if config.identity else "no pretrained weights"


def _load(config: AnyPart, allow_download: bool) -> TextEncoder:
    """Load pretrained weights, and make sure that they are those that the run knows."""
    assert config.pretrained is not None
    assert config.identity is not None, "the identity is found before the encoder is built"
    if isinstance(config, ClipConfig):
        published = clip.find(config.pretrained, allow_download)
        weights.check(config.pretrained, config.identity, clip.identify(published, config.records))
        return clip.load(config, published)
    folder = weights.find(config.pretrained, allow_download)
    weights.check(config.pretrained, config.identity, weights.identify(folder, config.records))
    return t5.load(config, folder) if isinstance(config, T5Config) else auto.load(config, folder)
