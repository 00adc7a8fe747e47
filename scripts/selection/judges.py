"""What judges pictures: the verifier of the Shapes, a scorer that a run has trained, a published one, or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lab import runtime as runtimes
from lab.data.shapes_captions import parse
from lab.errors import Refused
from lab.evaluation.best_of_n import Score, weighted
from lab.evaluation.prompt_accuracy import Verdict, judge
from lab.images import from_uint8, to_uint8
from lab.rundir import RunDir
from lab.runtime import RuntimeConfig
from lab.scorer import published
from lab.scorer.judge import Judge
from lab.scorer.stage import ScorerConfig
from scripts.assembly import assemble, saved
from scripts.assembly.saved import Saved

VERDICTS: Mapping[str, Callable[[Verdict], float]] = {
    "prompt_accuracy": lambda verdict: verdict.agreement,
    "readable": lambda verdict: float(verdict.readable),
}
PUBLISHED = "clip:"


class Member(NamedTuple):
    """One judge of several.

    Attributes:
        name: as it was asked for.
        weight: of its scores.
        score: gives the judge of pictures of prompts.
        origin: which weights it has; ``None`` for the verifier, which has none.
        cut: counts the prompts whose end it does not hear.
    """

    name: str
    weight: float
    score: Callable[[Sequence[str]], Score]
    origin: Mapping[str, str] | None
    cut: Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Panel:
    """Judges with weights, as --scorer names them.

    Attributes:
        text: their names.
        members: the judges.
    """

    text: str
    members: tuple[Member, ...]

    def score(self, prompts: Sequence[str]) -> Score:
        """Give the judge of pictures of these prompts.

        Raises:
            Refused: a prompt that one of them cannot judge.
        """
        return weighted([(member.weight, member.score(prompts)) for member in self.members])

    @property
    def facts(self) -> dict[str, object]:
        """Give what determines its scores, as a part of recipes."""
        origins = {member.name: dict(member.origin) for member in self.members if member.origin is not None}
        return {"scorer": self.text, **({"judges": origins} if origins else {})}

    @property
    def is_verifier(self) -> bool:
        """Whether the verifier of the Shapes is among them."""
        return any(member.origin is None for member in self.members)

    def warnings(self, prompts: Sequence[str]) -> list[str]:
        """Say what is not heard of prompts."""
        cuts, of = {member.name: member.cut(prompts) for member in self.members}, f"of {len(prompts)} prompts"
        return [f"warning: {name} does not hear the end of {cut} {of}" for name, cut in cuts.items() if cut]


def read(text: str) -> Panel:
    """Read the judges that --scorer names: "prompt_accuracy", "runs/scorer", "runs/scorer=1,readable=0.5".

    Raises:
        Refused: no such judge or weight.
    """
    parts = [part.partition("=")[::2] for part in text.split(",")]
    weights = []
    for name, weight in parts:
        try:
            weights.append(float(weight or 1))
        except ValueError:
            raise Refused(f"--scorer {name}={weight}: the weight must be a number") from None
    return Panel(text, tuple(_member(name, weight) for (name, _), weight in zip(parts, weights, strict=True)))


def trained(found: Saved) -> Judge:
    """Build the scorer that a checkpoint holds.

    Raises:
        Refused: the run trains something else, or the weights do not fit its own configuration.
    """
    experiment = found.experiment
    if not isinstance(experiment.stage, ScorerConfig):
        raise Refused(f"{found.run.path} trains no scorer: name a run with stage.kind=scorer")
    runtime = runtimes.start(experiment.runtime)
    model = assemble.scorer(experiment, experiment.stage, runtime)
    found.fill({"model": model})
    return Judge(runtime.place(model).eval().requires_grad_(False), runtime, found.origin)


def _member(name: str, weight: float) -> Member:
    if name in VERDICTS:
        return Member(name, weight, partial(_by_verdict, VERDICTS[name]), None, lambda _: 0)
    if name.startswith(PUBLISHED):
        runtime = runtimes.start(RuntimeConfig(precision="fp32", channels_last=False))
        made = published.load(name.removeprefix(PUBLISHED), runtime)
    elif RunDir.is_run(name):
        made = trained(saved.read(Path(name)))
    else:
        raise Refused(
            f"--scorer {name}: there are {', '.join(VERDICTS)}, the folder of a run with stage.kind=scorer, and "
            "clip:FOLDER or clip:ARCHITECTURE:FILE; several as in prompt_accuracy=1,readable=0.5"
        )
    return Member(name, weight, partial(_by_cosine, made), made.origin, made.model.cut)


def _by_verdict(figure: Callable[[Verdict], float], prompts: Sequence[str]) -> Score:
    for prompt in prompts:
        parse(prompt)

    def score(images: Tensor, items: Sequence[int]) -> list[float]:
        seen = from_uint8(to_uint8(images))  # as a PNG would hold them
        return [figure(judge(image, prompts[item])) for image, item in zip(seen, items, strict=True)]

    return score


def _by_cosine(by: Judge, prompts: Sequence[str]) -> Score:
    texts = by.texts(prompts)

    def score(images: Tensor, items: Sequence[int]) -> list[float]:
        found: list[float] = (by.images(images) * texts[list(items)]).sum(dim=1).tolist()
        return found

    return score
