"""How good the best of n pictures is, over what it costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.candidates import Candidates
from diffusion.pipeline import Request
from lab.evaluation.best_of_n import Candidate, Round, best_of_n, cost
from lab.evaluation.intervals import mean, ratio, wilson
from lab.evaluation.prompt_accuracy import judge
from lab.images import from_uint8, to_uint8
from lab.storage import write_whole
from scripts.interface.plotting import Line, Plot
from scripts.selection.judges import Panel
from scripts.selection.selecting import PROMPTS_AT_ONCE, Selector

VERIFIER = "the verifier: right in everything"
CIRCULAR = (
    "warning: selected and judged by the same {}: these figures say how far selection goes, "
    "not how good the pictures are to another judge"
)


def quality(
    selector: Selector, prompts: Sequence[str], sizes: Sequence[int], judges: Panel | None, kept: Path
) -> dict[str, Any]:
    """Measure how what a judge says of the best picture grows with the number of candidates.

    Every candidate of the largest size is drawn to its end and scored at each round on the way: what a smaller size, or
    giving up, would have selected follows from the scores, since candidates are nested and previews the same bits.

    Args:
        selector: with the largest size.
        prompts: one picture is selected of each.
        sizes: numbers of candidates, increasing.
        judges: say what the selected pictures are worth; ``None`` for the verifier of the Shapes.
        kept: a folder that keeps what is done, for the next call if this one is killed; the caller removes it.

    Returns:
        JSON values; "curve" has a line for each size, with and without rounds, and "gains" compares the two.
    """
    table: list[dict[str, Any]] = []
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    for start in tqdm(starts, unit=f"{PROMPTS_AT_ONCE} prompts", desc=f"best of {selector.plan.n}"):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        path = kept / f"{start:06d}.json"
        if not path.exists():
            write_whole(path, json.dumps(_candidates(selector, part, judges)).encode())
        table += json.loads(path.read_bytes())
    steps, rounds = selector.sampling.steps, selector.plan.rounds
    panel = selector.plan.panel
    curve = [
        _point(table, n, steps, each, is_share=judges is None) for each in dict.fromkeys(((), rounds)) for n in sizes
    ]
    return {
        "origin": dict(selector.trained.origin),
        "sampling": selector.sampling.model_dump(mode="json"),
        **panel.facts,
        "judge": VERIFIER if judges is None else judges.facts,
        "is_circular": panel.is_verifier if judges is None else _share_a_judge(panel, judges),
        "rounds": [list(each) for each in rounds],
        "curve": curve,
        "gains": _gains(table, sizes, steps, rounds) if rounds else [],
    }


def table(found: Mapping[str, Any], num: int) -> str:
    """Lay a curve out for a terminal."""
    judged_by = found["judge"] if isinstance(found["judge"], str) else found["judge"]["scorer"]
    lines = [
        f"best of n by {found['scorer']}, {num} prompts, judged by {judged_by}",
        "    n  steps  value  95 % interval    mean score",
    ]
    for point in found["curve"]:
        given_up = "  giving up by " + ", ".join(f"{s}:{k:g}" for s, k in found["rounds"]) if point["is_halved"] else ""
        lines.append(
            f"{point['n']:>5}  {point['steps']:>5}  {point['value']:.3f}  {point['low']:.3f} - {point['high']:.3f}"
            f"         {point['score']:.3f}{given_up}"
        )
    for gain in found["gains"]:
        made = f"best of {gain['n']} with {gain['share_of_steps']:.0%} of the steps"
        lines.append(f"{made} loses {gain['lost']:.3f} of the value: {_told(gain['ratio'])}")
    if found["is_circular"]:
        lines.append(CIRCULAR.format("verifier" if found["judge"] == VERIFIER else "scorer"))
    return "\n".join(lines)


def plots(found: Mapping[str, Any]) -> list[Plot]:
    """Give the curve over the steps of the sampler that a prompt costs."""
    lines = []
    for is_halved, label in ((False, "all drawn to the end"), (True, "the worst given up on the way")):
        points = [point for point in found["curve"] if point["is_halved"] is is_halved]
        if points:
            columns = ([point[name] for point in points] for name in ("steps", "value", "low", "high"))
            lines.append(Line(f"{label}, n = {', '.join(str(point['n']) for point in points)}", *columns))
    what = "right" if found["judge"] == VERIFIER else "judge's score"
    return [Plot(f"{what}, best of n by {found['scorer']}", "steps of the sampler per prompt", lines, True)]


def _candidates(selector: Selector, prompts: Sequence[str], judges: Panel | None) -> list[dict[str, Any]]:
    """Of each prompt the scores of all candidates by step, and what the judge says of the finished pictures."""
    n, requests, score = selector.plan.n, [Request(prompt) for prompt in prompts], selector.plan.panel.score(prompts)
    wanted = [Candidate(item, number) for item in range(len(prompts)) for number in range(n)]
    items = [item for item, _ in wanted]
    candidates = Candidates(selector.trained.pipeline, requests, selector.seed, selector.sampling, selector.poll)
    scores: list[list[dict[str, float]]] = [[{} for _ in range(n)] for _ in prompts]
    for step in (*(step for step, _ in selector.plan.rounds), selector.sampling.steps):
        images = candidates.grow(wanted, step)
        for (item, number), value in zip(wanted, score(images, items), strict=True):
            scores[item][number][str(step)] = value
    if judges is None:
        seen = from_uint8(to_uint8(images))
        worth = [float(judge(image, prompts[item]).right) for image, item in zip(seen, items, strict=True)]
    else:
        worth = list(judges.score(prompts)(images, items))
    return [{"scores": scores[item], "worth": worth[item * n : (item + 1) * n]} for item in range(len(prompts))]


def _best(table: Sequence[Mapping[str, Any]], n: int, steps: int, rounds: Sequence[Round]) -> list[int]:
    """The number of the best of n of each prompt, replayed from the scores."""

    def grow(wanted: Sequence[Candidate], step: int) -> Tensor:
        return torch.tensor([table[item]["scores"][number][str(step)] for item, number in wanted], dtype=torch.float64)

    found = best_of_n(grow, lambda images, items: images.tolist(), len(table), n, steps, rounds)
    return [each.ranking[0] for each in found]


def _worth(table: Sequence[Mapping[str, Any]], n: int, steps: int, rounds: Sequence[Round] = ()) -> list[float]:
    return [row["worth"][number] for row, number in zip(table, _best(table, n, steps, rounds), strict=True)]


def _point(
    table: Sequence[Mapping[str, Any]], n: int, steps: int, rounds: Sequence[Round], *, is_share: bool
) -> dict[str, Any]:
    """What the best of n gives."""
    best, worth = _best(table, n, steps, rounds), _worth(table, n, steps, rounds)
    score = sum(row["scores"][number][str(steps)] for row, number in zip(table, best, strict=True)) / len(table)
    if is_share:
        value = sum(worth) / len(worth)
        low, high = wilson(round(sum(worth)), len(worth))
    else:
        told = mean(worth)
        value, low, high = told.value, told.low, told.high
    made = cost(n, steps, rounds)
    return {"n": n, "is_halved": bool(rounds), "steps": made, "value": value, "low": low, "high": high, "score": score}


def _gains(
    table: Sequence[Mapping[str, Any]], sizes: Sequence[int], steps: int, rounds: Sequence[Round]
) -> list[dict[str, Any]]:
    """What giving up keeps of what selection gains over a single picture, over the same prompts."""
    single, found = _worth(table, 1, steps), []
    for n in (size for size in sizes if size > 1):
        whole, halved = _worth(table, n, steps), _worth(table, n, steps, rounds)
        gains = [[one - other for one, other in zip(each, single, strict=True)] for each in (halved, whole)]
        kept = asdict(ratio(*gains)) if sum(gains[1]) and len(single) > 1 else None
        if kept is not None:
            kept |= {end: kept[end] if isfinite(kept[end]) else None for end in ("low", "high")}
        lost = (sum(whole) - sum(halved)) / len(whole)
        share = cost(n, steps, rounds) / cost(n, steps)
        found.append({"n": n, "share_of_steps": share, "lost": lost, "ratio": kept})
    return found


def _told(kept: Mapping[str, Any] | None) -> str:
    if kept is None:
        return "there is no gain to keep"
    if kept["low"] is None:
        return f"{kept['value']:.2f} of the gain is kept, which too few prompts tell from any other share"
    return f"{kept['value']:.2f} of the gain is kept [{kept['low']:.2f}, {kept['high']:.2f}]"


def _share_a_judge(one: Panel, other: Panel) -> bool:
    names, others = ([member.origin or member.name for member in panel.members] for panel in (one, other))
    return any(name in others for name in names)
