"""The best of several pictures of a prompt: which judge, which rounds, and what that gains."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.candidates import Candidates, check_pausable
from diffusion.pipeline import Poll, Request, SamplingConfig, within_memory
from lab.data.shapes_captions import parse
from lab.errors import Refused
from lab.evaluation.best_of_n import Candidate, Round, Score, Selection, best_of_n, check, cost, finished, weighted
from lab.evaluation.intervals import wilson
from lab.evaluation.prompt_accuracy import Verdict, judge
from lab.images import from_uint8, save_png, to_uint8
from lab.storage import write_whole
from scripts import gallery
from scripts.drawing import Trained
from scripts.gallery import Picture
from superres.pipeline import enlarged

SCORERS: Mapping[str, Callable[[Verdict], float]] = {
    "prompt_accuracy": lambda verdict: verdict.agreement,
    "readable": lambda verdict: float(verdict.readable),
}
CIRCULAR = (
    "warning: selected and judged by the same verifier: these figures say how far selection goes, "
    "not how good the pictures are to another judge"
)
PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Plan:
    """How candidates are selected.

    Attributes:
        n: candidates of each prompt.
        scorer: one judge, or several with weights: "prompt_accuracy=1,readable=0.5".
        rounds: at which candidates are given up.
    """

    n: int
    scorer: str
    rounds: tuple[Round, ...]

    @property
    def finished(self) -> int:
        """How many candidates come to their end."""
        return finished(self.n, self.rounds)

    def check(self, sampling: SamplingConfig) -> None:
        """Refuse what cannot be done with a sampler.

        Raises:
            Refused: too few candidates, rounds that are none, or a sampler that cannot be paused.
        """
        try:
            check(self.n, sampling.steps, self.rounds)
        except ValueError as error:
            raise Refused(f"--best-of {self.n} with --reject: {error}") from None
        if self.rounds:
            check_pausable(sampling)


def read_round(text: str) -> Round:
    """Read "STEP:SHARE", as in 6:0.5.

    Raises:
        Refused: it is something else.
    """
    try:
        step, share = text.split(":")
        return Round(int(step), float(share))
    except ValueError:
        raise Refused(f"--reject {text}: must read STEP:SHARE, as in 6:0.5") from None


def read_sizes(text: str) -> list[int]:
    """Read "1,2,4,8".

    Raises:
        Refused: no increasing numbers from 1 on.
    """
    parts = text.split(",")
    sizes = [int(part) for part in parts if part.isdecimal()]
    if len(sizes) != len(parts) or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise Refused(f"--best-of {text}: must be increasing numbers of candidates, as in 1,2,4,8,16")
    return sizes


def judged_by(scorer: str, prompts: Sequence[str]) -> Score:
    """Give the judge of pictures of these prompts.

    Raises:
        Refused: no such judge or weight, or a prompt that it cannot judge.
    """
    parts = [part.partition("=")[::2] for part in scorer.split(",")]
    for prompt in prompts:
        parse(prompt)
    scores = []
    for name, weight in parts:
        if name not in SCORERS:
            raise Refused(
                f"--scorer {name}: there are {', '.join(SCORERS)}; several as in prompt_accuracy=1,readable=0.5"
            )
        try:
            scores.append((float(weight or 1), _by_verdict(SCORERS[name], prompts)))
        except ValueError:
            raise Refused(f"--scorer {name}={weight}: the weight must be a number") from None
    return weighted(scores)


def _by_verdict(figure: Callable[[Verdict], float], prompts: Sequence[str]) -> Score:
    def score(images: Tensor, items: Sequence[int]) -> list[float]:
        seen = from_uint8(to_uint8(images))  # as a PNG would hold them
        return [figure(judge(image, prompts[item])) for image, item in zip(seen, items, strict=True)]

    return score


@dataclass(frozen=True)
class Selector:
    """Draws candidates and keeps the best.

    Attributes:
        trained, seed, sampling: how one candidate is drawn.
        plan: how they are selected.
        poll: see ``Pipeline.draw``.
    """

    trained: Trained
    seed: int
    sampling: SamplingConfig
    plan: Plan
    poll: Poll

    def draw(self, requests: Sequence[Request]) -> list[Selection]:
        """Draw candidates of each request, whose own number is not looked at, and select."""
        n, steps, rounds = self.plan.n, self.sampling.steps, self.plan.rounds
        score = judged_by(self.plan.scorer, [request.prompt for request in requests])
        with tqdm(total=len(requests) * cost(n, steps, rounds), unit="step", desc=f"best of {n}") as bar:

            def polled() -> None:
                bar.update(candidates.evaluations - bar.n)
                self.poll()

            candidates = Candidates(self.trained.pipeline, requests, self.seed, self.sampling, polled)
            found = best_of_n(candidates.grow, score, len(requests), n, steps, rounds)
            bar.update(candidates.evaluations - bar.n)
        return found

    def keep(self, requests: Sequence[Request], num: int, out: Path) -> list[Picture]:
        """Save the best pictures of each prompt, and beside them all scores; what is there already is not drawn again.

        Args:
            requests: one per prompt.
            num: of the best pictures of each.
            out: their folder.
        """
        shared = gallery.recipe(self.trained, self.seed, self.sampling)
        plan = {"best_of": self.plan.n, "scorer": self.plan.scorer, "rounds": [list(each) for each in self.plan.rounds]}
        wanted = {**shared, **plan, "num": num, "requests": [[each.prompt, each.negative] for each in requests]}
        path = out / f"best-{gallery.digest(wanted)}.json"
        if path.exists():
            kept = json.loads(path.read_bytes())["pictures"]
            pictures = [_picture(recipe) for recipe in kept]
            if all((out / picture.name).exists() for picture in pictures):
                return pictures
        selections, pictures = self.draw(requests), []
        for request, found in zip(requests, selections, strict=True):
            best = [request._replace(number=number) for number in found.ranking[:num]]
            (images,) = enlarged([found.images[:num]], self.trained.upscalers, best, self.seed, self.poll)
            for rank, (asked, image) in enumerate(zip(best, images, strict=True)):
                selected = {**plan, "rank": rank, "score": found.scores[asked.number][self.sampling.steps]}
                pictures.append(Picture(asked, {**asked._asdict(), **shared, "selected": selected}))
                recipe = json.dumps(pictures[-1].recipe, sort_keys=True)
                save_png(out / pictures[-1].name, image, {"recipe": recipe})
        scores = [
            {"prompt": each.prompt, "scores": found.scores} for each, found in zip(requests, selections, strict=True)
        ]
        told = {**wanted, "candidates": scores, "pictures": [picture.recipe for picture in pictures]}
        write_whole(path, (json.dumps(told, indent=1) + "\n").encode())
        gallery.enter(pictures, out)
        return pictures


def _picture(recipe: Mapping[str, Any]) -> Picture:
    return Picture(Request(recipe["prompt"], recipe["number"], recipe["negative"]), recipe)


def sample(selector: Selector, requests: Sequence[Request], num: int, out: Path) -> tuple[list[Picture], str]:
    """Give the best pictures, and a line that says what they cost; with half the chunk where memory runs out.

    They are saved every ``PROMPTS_AT_ONCE`` prompts, and not drawn again after a kill.

    Raises:
        Refused: as from ``Plan.check`` and ``judged_by``, or fewer candidates than pictures.
    """
    plan, steps = selector.plan, selector.sampling.steps
    plan.check(selector.sampling)
    if plan.finished < num:
        raise Refused(f"--num {num}: of {plan.n} candidates only {plan.finished} are finished; raise --best-of")
    judged_by(plan.scorer, [request.prompt for request in requests])

    def keep(sampling: SamplingConfig) -> list[Picture]:
        own, starts = replace(selector, sampling=sampling), range(0, len(requests), PROMPTS_AT_ONCE)
        return [each for start in starts for each in own.keep(requests[start : start + PROMPTS_AT_ONCE], num, out)]

    pictures = within_memory(keep, selector.sampling)
    made, whole = cost(plan.n, steps, plan.rounds), plan.n * steps
    return pictures, (
        f"the best {num} of {plan.n} by {plan.scorer}: {made} of {whole} steps per prompt ({made / whole:.0%}), "
        f"{steps} for a single picture"
    )


def quality(selector: Selector, prompts: Sequence[str], sizes: Sequence[int], kept: Path) -> dict[str, Any]:
    """Measure how the share of right pictures grows with the number of candidates.

    Every candidate of the largest size is drawn to its end and judged at each round on the way: what a smaller size, or
    giving up, would have selected follows from the scores, since candidates are nested and previews the same bits.

    Args:
        selector: with the largest size.
        prompts: one picture is selected of each.
        sizes: numbers of candidates, increasing.
        kept: a folder that keeps what is done, for the next call if this one is killed; the caller removes it.

    Returns:
        JSON values; "curve" has a line for each size, with and without rounds.
    """
    table: list[dict[str, Any]] = []
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    for start in tqdm(starts, unit=f"{PROMPTS_AT_ONCE} prompts", desc=f"best of {selector.plan.n}"):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        path = kept / f"{start:06d}.json"
        if not path.exists():
            write_whole(path, json.dumps(_judged(selector, part)).encode())
        table += json.loads(path.read_bytes())
    curve = [
        _point(table, n, selector.sampling.steps, rounds)
        for rounds in dict.fromkeys(((), selector.plan.rounds))
        for n in sizes
    ]
    return {
        "origin": dict(selector.trained.origin),
        "sampling": selector.sampling.model_dump(mode="json"),
        "scorer": selector.plan.scorer,
        "rounds": [list(each) for each in selector.plan.rounds],
        "curve": curve,
    }


def _judged(selector: Selector, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Of each prompt the scores of all candidates by step, and whether the finished pictures are right."""
    requests, score = [Request(prompt) for prompt in prompts], judged_by(selector.plan.scorer, prompts)
    wanted = [Candidate(item, number) for item in range(len(prompts)) for number in range(selector.plan.n)]
    candidates = Candidates(selector.trained.pipeline, requests, selector.seed, selector.sampling, selector.poll)
    scores: list[list[dict[str, float]]] = [[{} for _ in range(selector.plan.n)] for _ in prompts]
    for step in (*(step for step, _ in selector.plan.rounds), selector.sampling.steps):
        images = candidates.grow(wanted, step)
        for (item, number), value in zip(wanted, score(images, [item for item, _ in wanted]), strict=True):
            scores[item][number][str(step)] = value
    right = [
        judge(image, prompts[item]).right for image, (item, _) in zip(from_uint8(to_uint8(images)), wanted, strict=True)
    ]
    n = selector.plan.n
    return [{"scores": scores[item], "right": right[item * n : (item + 1) * n]} for item in range(len(prompts))]


def _point(table: Sequence[Mapping[str, Any]], n: int, steps: int, rounds: Sequence[Round]) -> dict[str, Any]:
    """What the best of n gives, replayed from the scores."""

    def grow(wanted: Sequence[Candidate], step: int) -> Tensor:
        return torch.tensor([table[item]["scores"][number][str(step)] for item, number in wanted], dtype=torch.float64)

    found = best_of_n(grow, lambda images, items: images.tolist(), len(table), n, steps, rounds)
    best = [each.ranking[0] for each in found]
    right = sum(row["right"][number] for row, number in zip(table, best, strict=True))
    score = sum(row["scores"][number][str(steps)] for row, number in zip(table, best, strict=True)) / len(table)
    low, high = wilson(right, len(table))
    share = right / len(table)
    made = cost(n, steps, rounds)
    return {"n": n, "is_halved": bool(rounds), "steps": made, "right": share, "low": low, "high": high, "score": score}


def table(found: Mapping[str, Any], num: int) -> str:
    """Lay a curve out for a terminal."""
    lines = [f"best of n by {found['scorer']}, {num} prompts", "    n  steps  right  95 % interval    mean score"]
    for point in found["curve"]:
        given_up = "  giving up by " + ", ".join(f"{s}:{k:g}" for s, k in found["rounds"]) if point["is_halved"] else ""
        lines.append(
            f"{point['n']:>5}  {point['steps']:>5}  {point['right']:.3f}  {point['low']:.3f} - {point['high']:.3f}"
            f"         {point['score']:.3f}{given_up}"
        )
    whole = [point for point in found["curve"] if not point["is_halved"]]
    for point, twin in zip(found["curve"][len(whole) :], whole, strict=False):
        if point["n"] > 1:
            lines.append(
                f"best of {point['n']} with {point['steps'] / twin['steps']:.0%} of the steps loses "
                f"{twin['right'] - point['right']:.3f} of right and {twin['score'] - point['score']:.3f} of the score"
            )
    return "\n".join([*lines, CIRCULAR])
