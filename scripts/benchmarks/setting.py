"""A sampler with its spacing in one word, as on the command line: ``unipc_2:logsnr:-8:8``, ``ddim:uniform:eta=1``."""

from collections.abc import Mapping
from typing import NamedTuple

from diffusion.pipeline import SamplingConfig
from lab.errors import Refused
from scripts.assembly import drawing
from scripts.assembly.experiments import TextToImageExperiment
from scripts.benchmarks.walks import steps_for

OWN = ("sampler", "spacing", "logsnr_limits", "eta", "variance", "churn", "times")  # what a setting says anew
FORM = "sampler[:spacing[:low:high]][:name=value ...], such as ddim, unipc_2:logsnr:-8:8 or ddim:uniform:eta=1"


class Setting(NamedTuple):
    """A sampler and where its steps lie.

    Attributes:
        text: as it was written.
        changes: the same as settings of the sampler; what it leaves out has its default.
    """

    text: str
    changes: Mapping[str, object]


def setting(text: str) -> Setting:
    """Read a setting.

    Raises:
        Refused: it has another form.
    """
    sampler, *rest = text.split(":")
    changes: dict[str, object] = {"sampler": sampler}
    try:
        for word in [word for word in rest if "=" in word]:
            name, _, value = word.partition("=")
            changes[name] = value if name == "variance" else float(value)
        match [word for word in rest if "=" not in word]:
            case []:
                pass
            case [spacing]:
                changes["spacing"] = spacing
            case [spacing, low, high]:
                changes |= {"spacing": spacing, "logsnr_limits": [float(low), float(high)]}
            case _:
                raise ValueError
    except ValueError:
        raise Refused(f"{text!r} is no setting: give {FORM}") from None
    return Setting(text, changes)


def sampling_of(experiment: TextToImageExperiment, one: Setting, calls: int, **changes: object) -> SamplingConfig:
    """Give the run's own settings with this sampler and as many steps as the calls allow.

    Raises:
        Refused: an unknown sampler or a value that cannot be.
    """
    fresh = {name: SamplingConfig.model_fields[name].default for name in OWN}
    steps = steps_for(str(one.changes["sampler"]), calls)
    return drawing.sampling(experiment, {**fresh, **one.changes, "steps": steps, **changes})


def is_deterministic(sampling: SamplingConfig) -> bool:
    """Say whether all noise is drawn before the walk, so that there is an exact solution to be near to."""
    return sampling.sampler not in ("ddpm", "euler_ancestral") and sampling.eta == 0 and sampling.churn == 0
