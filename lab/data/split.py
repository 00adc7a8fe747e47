"""Which samples are trained on and which are held out: a function of the sample's group, the same in every run.

Samples of one group stay on one side. By default a group is what the caption says apart from tones of skin and genders,
so that near-twins, "woman running" and "man running: dark skin tone", are not torn apart.
"""

import hashlib
import re
from typing import Literal

from pydantic import Field

from lab.config import Config

Split = Literal["train", "heldout"]

_TONE = r"\b(?:medium[ -])?(?:light|medium|dark)[ -]skin[ -]tone\b"
_PERSON = r"\b(?:wo)?m[ae]n(?:'?s)?\b|\b(?:person|people|boy|girl|male|female|lady|gentleman|adult|child)(?:'?s)?\b"
_MODIFIER = re.compile(f"{_TONE}|{_PERSON}")
_WORD = re.compile(r"[^\W_]+")


class SplitConfig(Config):
    """What is held out.

    Attributes:
        heldout: share of the groups that training never sees.
        group: what samples of one group have in common: "caption", the first caption without tones of skin and
            genders; "id", so that every sample is its own group; or the name of a field of the metadata.
    """

    heldout: float = Field(0.1, ge=0, lt=1)
    group: str = Field("caption", min_length=1)


def plain(caption: str) -> str:
    """Give the words of a caption, in lower case, without tones of skin and genders."""
    return " ".join(_WORD.findall(_MODIFIER.sub(" ", caption.lower())))


def place(group: str) -> float:
    """Give a group's place in [0, 1); below ``SplitConfig.heldout`` it is held out."""
    digest = hashlib.blake2b(group.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
