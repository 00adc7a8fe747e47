"""What became of each prompt, on disk: one line of JSON per picture, beside the figures that sum them up.

    {"kind": "pair", "index": 0, "prompt": "a red circle above a blue square", "right": true,
     "attributes": {"count": true, ...}, "problem": ""}

Two evaluations of the same prompts and noise can so be compared prompt by prompt, without drawing anything again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.errors import BadData
from lab.evaluation.prompt_accuracy import Verdict
from lab.storage import write_whole


def path_of(figures: Path) -> Path:
    """Give the place of the outcomes that belong to a file of figures: ``x.json`` has ``x.outcomes.jsonl``."""
    return figures.with_name(f"{figures.stem}.outcomes.jsonl")


def picture_of(figures: Path, kind: str, index: int) -> Path:
    """Give the place of the picture of one of the first prompts, which are kept to be looked at."""
    return figures.with_name(f"{figures.stem}.pictures") / f"{kind}-{index:04d}.png"


def write(path: Path, prompts: Mapping[str, Sequence[str]], verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    """Write one line per prompt.

    Args:
        path: where.
        prompts: by kind.
        verdicts: by kind, one per prompt, in the same order.
    """
    lines = (
        json.dumps({"kind": kind, "index": index, "prompt": text, **asdict(verdict)})
        for kind, texts in prompts.items()
        for index, (text, verdict) in enumerate(zip(texts, verdicts[kind], strict=True))
    )
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the lines back, by kind, in the order of the prompts.

    Raises:
        BadData: the file is missing or spoilt.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            outcome = json.loads(line)
            own = found.setdefault(outcome["kind"], [])
            if outcome["index"] != len(own) or not isinstance(outcome["right"], bool):
                raise ValueError(f"{outcome['kind']}, line {len(own) + 1}")
            own.append(outcome)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} holds no outcomes ({error!r}): delete it, and evaluate again") from None
    return found
