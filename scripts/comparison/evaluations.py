"""What evaluate.py left in runs: which evaluations there are, and which of them can be compared."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lab.errors import BadData, Refused
from lab.evaluation import outcomes
from lab.evaluation.compare import Values
from lab.rundir import RunDir
from scripts.assembly import experiments
from scripts.assembly.experiments import AnyExperiment

DISTANCES = ("kernel_distance", "frechet_distance")  # of pictures of pairs, each of which is better when lower
WHAT = ("right", "readable", "agreement")  # or the name of an attribute


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint of a run.

    Attributes:
        run: its directory.
        path: of the figures.
        figures: as scripts/evaluation/measure.py gives them.
        asked: what two evaluations must share to be compared prompt by prompt: hash and seed of the prompts, how many
            of which kind, and which weights. The noise of a picture is a function of that seed and the prompt's place.
        step: of the checkpoint.
    """

    run: Path
    path: Path
    figures: Mapping[str, Any]
    asked: tuple[str, int, str, str]
    step: int

    @cached_property
    def experiment(self) -> AnyExperiment:
        """The run's own configuration."""
        return experiments.load(RunDir.view(self.run).config_path, [])

    @cached_property
    def lines(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What became of each prompt, by kind."""
        return outcomes.read(outcomes.path_of(self.path))

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts."""
        return list(self.figures["prompt_accuracy"])

    @property
    def num(self) -> int:
        """Prompts in all."""
        return sum(share["n"] for share in self.figures["prompt_accuracy"].values())

    @property
    def is_own(self) -> bool:
        """Whether the pictures were drawn with the run's own settings of the sampler."""
        return bool(self.experiment.stage.model_dump(mode="json").get("sampling") == self.figures["sampling"])

    @property
    def drawing(self) -> int:
        """Which ``diffusion.pipeline.DRAWING`` the pictures are; 0 before there was one."""
        return int(self.figures["origin"].get("drawing", 0))

    def figure(self, name: str) -> float:
        """Give the accuracy on a kind of prompts, or one of ``DISTANCES``.

        Raises:
            Refused: it was not measured.
        """
        found = {kind: float(share["value"]) for kind, share in self.figures["prompt_accuracy"].items()}
        for each in self.figures.get("distances", []):
            found[each["name"].partition(" ")[0]] = float(each["value"])
        if name not in found:
            raise Refused(f"--by {name}: {self.path} has {', '.join(found)}")
        return found[name]

    def answers(self, kind: str, what: str) -> Values:
        """Give what is judged of each prompt (n,): booleans, or for "agreement" the share of attributes that are right.

        Raises:
            Refused: no such kind or attribute.
        """
        if kind not in self.kinds:
            raise Refused(f"--kind {kind}: {self.path} has {', '.join(self.kinds)}")
        lines = self.lines[kind]
        match what:
            case "right":
                return np.array([line["right"] for line in lines])
            case "readable":
                return np.array([not line["problem"] for line in lines])
            case "agreement":
                return np.array([float(np.mean(list(line["attributes"].values()))) for line in lines])
        found = [line["attributes"][what] for line in lines if what in line["attributes"]]
        if not found:
            known = sorted({name for line in lines for name in line["attributes"]})
            raise Refused(f"--what {what}: {kind} has {', '.join([*WHAT, *known])}")
        return np.array(found)


def found(run: Path) -> list[Evaluation]:
    """Give the evaluations in a run whose outcomes are there too, newest checkpoint first.

    Raises:
        Refused: not a run.
        BadData: a file of figures is spoilt.
    """
    RunDir.view(run)
    paths = [path for path in sorted(run.glob("evaluation-*.json")) if outcomes.path_of(path).exists()]
    return sorted((_read(run, path) for path in paths), key=lambda each: -each.step)


def together(places: Sequence[Path]) -> list[Evaluation]:
    """Choose one evaluation of each run such that all were asked the same.

    Of a run the newest checkpoint counts, of what all were asked the longest list, and of settings of the sampler the
    run's own come first, then the latest way to draw.

    Args:
        places: run directories, or files of figures in them, which are then taken.

    Raises:
        Refused: a run has no evaluation, or they have none in common.
    """
    choices = [[_read(place.parent, place)] if place.is_file() else _newest(place) for place in places]
    common = set.intersection(*({each.asked for each in choice} for choice in choices))
    if not common:
        raise Refused(_apart(choices))
    asked = max(common, key=lambda key: (next(each.num for each in choices[0] if each.asked == key), key))
    return [_first(each for each in choice if each.asked == asked) for choice in choices]


def _newest(run: Path) -> list[Evaluation]:
    evaluations = found(run)
    if not evaluations:
        raise Refused(
            f"{run}: no evaluation with the outcome of each prompt there; make one: python scripts/evaluate.py {run}"
        )
    return [each for each in evaluations if each.step == evaluations[0].step]


def _first(evaluations: Iterable[Evaluation]) -> Evaluation:
    return min(evaluations, key=lambda each: (not each.is_own, -each.drawing, each.path.name))


def _apart(choices: Sequence[Sequence[Evaluation]]) -> str:
    """Say which runs were asked different things, and what to do."""
    first = choices[0][0]
    other = next(choice[0] for choice in choices if first.asked not in {each.asked for each in choice})
    what = "weights" if first.asked[:3] == other.asked[:3] else "prompts"
    told = {
        "prompts": f"{first.num} and {other.num} prompts",
        "weights": f"--weights {first.asked[3]} and {other.asked[3]}",
    }[what]
    num = min(share["n"] for share in first.figures["prompt_accuracy"].values())
    return (
        f"{first.run} and {other.run} were not evaluated on the same {what} ({told}): evaluate them alike, as in "
        f"python scripts/evaluate.py {other.run} --num {num} --weights {first.asked[3]}"
    )


def _read(run: Path, path: Path) -> Evaluation:
    try:
        figures = json.loads(path.read_bytes())
        prompts = figures["prompts"]
        sizes = {kind: share["n"] for kind, share in figures["prompt_accuracy"].items()}
        asked = (prompts["hash"], prompts["seed"], json.dumps(sizes), figures["origin"]["weights"])
        return Evaluation(run, path, figures, asked, figures["trained"]["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} holds no figures of scripts/evaluate.py ({error!r}); move it away") from None
