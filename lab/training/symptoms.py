"""What is wrong with a run, as far as its own record tells: starving, diverging, exploding, learning by heart.

A symptom is looked for whether or not it is there, so that a report also says what was found in order. Limits are such
that runs in order stay well away from them; each stands beside its symptom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

Lines = Sequence[Mapping[str, float | None]]
"""Of metrics.jsonl, in the order of the steps."""


@dataclass(frozen=True)
class Symptom:
    """Something that was looked at.

    Attributes:
        name: of what would be wrong.
        told: what was measured, in words.
        remedy: what to do about it; "" where it is in order.
    """

    name: str
    told: str
    remedy: str = ""

    @property
    def is_ill(self) -> bool:
        """Whether it is a finding."""
        return self.remedy != ""


WAIT = 0.2  # share of the time that the model may wait for data
SPIKE = 10.0  # times the median of the gradient's norm; one step in fifty may have such a one
SPIKES = 0.02
ALWAYS = 0.95  # share of late steps in which the gradient may be longer than what it is clipped to
VANISHED = 1e-6
ROSE = 1.5  # times its lowest level that the training loss may end at
SKIPPED = 0.01  # share of updates that may be left out
BY_HEART = 0.1  # of the training loss, by which the held-out one may be larger
SPARE = 4  # lines that say nothing of how a run goes on


def of_record(lines: Lines, clip: float, endless: bool) -> list[Symptom]:
    """Look for everything that the record of a run can tell.

    Args:
        lines: the record.
        clip: norm that gradients are clipped to; 0 for none.
        endless: whether the data never repeats, so that nothing can be learned by heart.
    """
    found = [starving(lines), *gradients(lines, clip), diverging(lines), skipping(lines)]
    return [symptom for symptom in (*found, None if endless else by_heart(lines)) if symptom]


def starving(lines: Lines) -> Symptom | None:
    """Whether the loader keeps the model waiting."""
    if not (waits := _column(lines, "time/data_wait_share")[1:]):  # the first one has the start in it
        return None
    wait = median(waits)
    told = f"the model waited for data {wait:.0%} of the time (limit {WAIT:.0%})"
    remedy = "raise train.workers, fill caches with scripts/prepare.py, or put the data on a faster disk"
    return Symptom("starving", told, remedy if wait > WAIT else "")


def gradients(lines: Lines, clip: float) -> list[Symptom]:
    """Whether the gradient's norm jumps, is cut off all the time, or is nothing."""
    norms = _column(lines, "train/gradient_norm")
    late = norms[len(norms) // 2 :]
    if len(late) < SPARE:
        return []
    usual = median(late)
    jumps = sum(norm > SPIKE * usual for norm in late) / len(late)
    told = (
        f"{jumps:.0%} of late gradients are {SPIKE:g} times longer than the median of {usual:.3g} (limit {SPIKES:.0%})"
    )
    remedy = "lower train.optimizer.rate, or set train.optimizer.clip near the median"
    found = [Symptom("jumping gradients", told, remedy if jumps > SPIKES else "")]
    told = f"the median of late gradients' norms is {usual:.3g} (limit {VANISHED:g})"
    remedy = "nothing is learned: look for a weight of 0 in stage.loss, or a rate that has fallen to 0 too early"
    found.append(Symptom("vanishing gradients", told, remedy if usual < VANISHED else ""))
    if clip:
        cut = sum(norm > clip for norm in late) / len(late)
        told = f"{cut:.0%} of late gradients were longer than train.optimizer.clip={clip:g} (limit {ALWAYS:.0%})"
        remedy = f"the limit has become the step size: set train.optimizer.clip to about {2 * usual:.2g}"
        found.append(Symptom("gradients always clipped", told, remedy if cut > ALWAYS else ""))
    return found


def diverging(lines: Lines) -> Symptom | None:
    """Whether the training loss has risen again; of what has a critic, the part without its voice."""
    losses = _column(lines, "train/pixel") or _column(lines, "train/loss")
    if len(losses) < 4 * SPARE:
        return None
    size = len(losses) // 8
    means = [fmean(losses[start : start + size]) for start in range(0, size * 8, size)]
    last, lowest = means[-1], min(means)
    told = f"the training loss ends at {last:.3g}, having been {lowest:.3g} (limit {ROSE:g} times)"
    remedy = "lower train.optimizer.rate, lengthen its warm-up, and go back to the checkpoint before the rise"
    return Symptom("diverging", told, remedy if last - lowest > (ROSE - 1) * abs(lowest) else "")


def skipping(lines: Lines) -> Symptom | None:
    """Whether many updates were left out because they were not finite."""
    steps = [line["step"] or 0.0 for line in lines if "train/loss" in line or "train/skipped" in line]
    if not steps:
        return None
    share = sum(_column(lines, "train/skipped")) / max(steps)
    told = f"{share:.1%} of the updates were not finite and left out (limit {SKIPPED:.0%})"
    remedy = "set runtime.precision=fp32 or bf16, lower train.optimizer.rate, and look at the samples that were named"
    return Symptom("updates left out", told, remedy if share > SKIPPED else "")


def by_heart(lines: Lines) -> Symptom | None:
    """Whether held-out images have a larger loss than those that are trained on, beyond chance."""
    names = [f"loss/{side}{part}" for side in ("train", "heldout") for part in ("", "/half_width")]
    rows = [[line.get(name) for name in names] for line in lines]
    measured = [[value for value in row if value is not None] for row in rows if None not in row]
    if not measured:
        return None
    train, one, heldout, other = measured[-1]
    doubt, gap = (one**2 + other**2) ** 0.5, heldout - train
    told = (
        f"the loss of held-out images is {heldout:.3g}, of those trained on {train:.3g}: {gap / train:+.0%}, and "
        f"{doubt / train:.0%} is chance (limit {BY_HEART:.0%} beyond it)"
    )
    remedy = (
        "what is drawn may be copies: take an earlier checkpoint (train.keep_best=-loss/heldout), more pictures, a "
        "smaller network, stage.unet.dropout or data.picture.flip"
    )
    return Symptom("learning by heart", told, remedy if gap - doubt > BY_HEART * train else "")


def _column(lines: Lines, name: str) -> list[float]:
    return [value for line in lines if (value := line.get(name)) is not None]
