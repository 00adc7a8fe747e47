"""One experiment: everything that a run is told, in one typed tree."""

import re
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import Field, model_validator

from lab.config import Config, diff
from lab.data.shapes import ShapesConfig
from lab.data.sources import AnyData
from lab.runtime import RuntimeConfig
from lab.text.clip import ClipConfig
from lab.text.selection import AnyText
from lab.training.config import TrainConfig

StageConfig = TypeVar("StageConfig", bound=Config, covariant=True)

# What may change between two halves of a run, except what its state depends on. So may the place of data, of frozen
# weights, of an autoencoder and of a source: each must be the same there.
FREE = (
    *("name", "runtime", "evaluate", "train", "text.cache", "text.pretrained"),
    *("stage.sampling", "stage.enlarging", "stage.source", "stage.codec.run", "stage.codec.pretrained"),
    *("stage.codec.precision", "stage.codec.tile", "stage.codec.cache"),
)
PLACES = re.compile(r"data\.(parts\.[^.]+\.)?(path|folder|cache|max_bad|remedy|keep_gb|allow_pipe)")
BOUND = ("train.batch", "train.ema", "train.init_from")


class EvaluateConfig(Config):
    """What is measured while a run trains.

    Attributes:
        every_steps: period; 0 for never.
        num: prompts per kind, and images to train on and held-out ones whose loss is taken.
        kinds: prompt lists of the Shapes, judged by their verifier; other data has none.
    """

    every_steps: int = Field(0, ge=0)
    num: int = Field(64, ge=1)
    kinds: tuple[str, ...] = ("single", "pair")


class Experiment(Config, Generic[StageConfig]):
    """Everything that a run is told.

    Attributes:
        name: of the run's folder under runs/.
        seed: of everything random.
        stage: what is trained.
        data: what it is trained on.
        text: how captions are encoded.
        train: how long and how.
        evaluate: what is measured on the way.
        runtime: where.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0)
    stage: StageConfig
    data: AnyData = ShapesConfig()
    text: AnyText = ClipConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _possible(self) -> "Experiment[StageConfig]":
        if self.train.keep_best and not self.evaluate.every_steps:
            raise ValueError(
                f"train.keep_best={self.train.keep_best}, but nothing is measured: set evaluate.every_steps"
            )
        return self


def identity_changes(old: Config, new: Config) -> Sequence[str]:
    """Give the differences that make ``new`` another experiment than ``old``, as "key: old -> new" lines."""

    def is_free(line: str) -> bool:
        key = line.split(":", 1)[0]
        if PLACES.fullmatch(key):
            return True
        under = [key == root or key.startswith(f"{root}.") for root in FREE]
        return any(under) and not any(key == root or key.startswith(f"{root}.") for root in BOUND)

    return [line for line in diff(old, new) if not is_free(line)]
