"""The best of several pictures of a prompt: which judge, which rounds, and what that gains."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion.candidates import Candidates, check_pausable
from diffusion.pipeline import Poll, Request, SamplingConfig, within_memory
from lab.errors import Refused
from lab.evaluation.best_of_n import Round, Selection, best_of_n, check, cost, finished
from lab.images import save_png
from lab.storage import write_whole
from scripts.assembly.drawing import Trained
from scripts.interface import gallery
from scripts.interface.gallery import Picture
from scripts.selection.judges import Panel
from superres.pipeline import enlarged

PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Plan:
    """How candidates are selected.

    Attributes:
        n: candidates of each prompt.
        panel: who judges.
        rounds: at which candidates are given up.
    """

    n: int
    panel: Panel
    rounds: tuple[Round, ...]

    @property
    def facts(self) -> dict[str, object]:
        """Give it as a part of recipes."""
        return {"best_of": self.n, **self.panel.facts, "rounds": [list(each) for each in self.rounds]}

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
        score = self.plan.panel.score([request.prompt for request in requests])
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
        plan = self.plan.facts
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
            upscalers, chunk = self.trained.upscalers, self.sampling.chunk
            (images,) = enlarged([found.images[:num]], upscalers, best, self.seed, chunk, self.poll)
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
        Refused: as from ``Plan.check`` and ``Panel.score``, or fewer candidates than pictures.
    """
    plan, steps = selector.plan, selector.sampling.steps
    plan.check(selector.sampling)
    if plan.finished < num:
        raise Refused(f"--num {num}: of {plan.n} candidates only {plan.finished} are finished; raise --best-of")
    plan.panel.score([request.prompt for request in requests])

    def keep(sampling: SamplingConfig) -> list[Picture]:
        own, starts = replace(selector, sampling=sampling), range(0, len(requests), PROMPTS_AT_ONCE)
        return [each for start in starts for each in own.keep(requests[start : start + PROMPTS_AT_ONCE], num, out)]

    pictures = within_memory(keep, selector.sampling)
    made, whole = cost(plan.n, steps, plan.rounds), plan.n * steps
    return pictures, (
        f"the best {num} of {plan.n} by {plan.panel.text}: {made} of {whole} steps per prompt ({made / whole:.0%}), "
        f"{steps} for a single picture"
    )
