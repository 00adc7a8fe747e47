"""A step is the same whatever its micro-batches: the demo's network and text encoder, through the one trainer's own
update."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.stage import DiffusionStage
from lab.data.loader import Batch, Loader
from lab.data.shapes import Shapes
from lab.randomness import seeded, uniform
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer
from scripts.assembly import assemble, experiments
from tests.faults import ROOT, TINY
from tests.stages import InDouble

BATCH = 8
CPU = Runtime(torch.device("cpu"))
OVERRIDES = (
    "stage.caption_drop=0.5",
    "stage.unet.dropout=0",
    "runtime.device=cpu",
    "runtime.precision=fp32",
    "runtime.channels_last=false",
)


class Weighted(DiffusionStage):
    """The stage with a weight per sample, 0.1 to 8, that depends on the sample's slot alone."""

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses, metrics = super().loss(player, batch)
        return losses * (0.1 + 7.9 * uniform(batch.seed, "weight", batch.slots) ** 4), metrics


class MeanOfMeans(Weighted):
    """The classic mistake: each of three micro-batches counts the same, whatever its size."""

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses, metrics = super().loss(player, batch)
        return losses * BATCH / (3 * len(batch)), metrics


Gradient = Callable[..., Tensor]


@pytest.fixture(scope="module")
def gradient(tmp_path_factory: pytest.TempPathFactory) -> Gradient:
    """Gives all gradients of one step as one float64 vector; half of the captions are dropped."""
    experiment = assemble.complete(experiments.load(ROOT / "configs" / "shapes.yaml", OVERRIDES))
    fresh = assemble.stage(experiment, CPU)
    model = fresh.players["model"]
    with torch.no_grad(), seeded(1, "test"):  # at birth most gradients are zero
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    rundir = RunDir.create(Path(tmp_path_factory.mktemp("runs")) / "run", experiment)
    source = Shapes(experiment.data)

    def of_one_step(micro_batch: int, *, double: bool = False, kind: type[DiffusionStage] = Weighted) -> Tensor:
        stage = kind(fresh.config, model.double() if double else model.float(), fresh.codec, fresh.size, CPU)
        loader = (InDouble if double else Loader)(source, seed=3)
        config = TrainConfig(steps=1, batch=BATCH, micro_batch=micro_batch, optimizer=OptimizerConfig(clip=0))
        trainer = Trainer(stage, loader, CPU, rundir, config)
        batches = loader.batches(0, config.windows())
        trainer.updater("model", [next(batches) for _ in config.windows()], step=0, factor=0.0)
        return torch.cat(
            [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
        )

    return of_one_step


def distance(one: Tensor, other: Tensor) -> float:
    """Relative l2 distance."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("double", "tolerance"), [(False, 5e-6), (True, 1e-12)], ids=["fp32", "fp64"])
def test_every_division_of_a_step_gives_the_same_gradient(gradient: Gradient, double: bool, tolerance: float) -> None:
    whole = gradient(8, double=double)  # 1 x 8
    assert whole.norm() > 0.1
    for micro_batch in (4, 2, 3):  # 2 x 4, 4 x 2, 3 + 3 + 2
        assert distance(gradient(micro_batch, double=double), whole) <= tolerance


def test_the_mean_of_means_would_be_seen(gradient: Gradient) -> None:
    assert distance(gradient(3, kind=MeanOfMeans), gradient(8)) > 1e-2


def test_times_that_learn_where_to_lie_are_the_same_for_every_division(tmp_path: Path) -> None:
    """The table of times changes between steps only: in float64 whole runs agree, with what they remember."""
    learning = ("stage.times.kind=loss_second_moment", "stage.times.bins=2", "stage.times.history=2")
    experiment = assemble.complete(experiments.load(TINY, (*OVERRIDES, *learning)))
    ends = []
    for micro_batch in (6, 4, 1):
        stage = assemble.stage(experiment, CPU)
        stage.players["model"].double()
        config = TrainConfig(steps=4, batch=6, micro_batch=micro_batch, preview_every=0, checkpoint_every=9)
        with RunDir.create(tmp_path / str(micro_batch), experiment) as rundir:
            assert Trainer(stage, InDouble(Shapes(experiment.data), seed=3), CPU, rundir, config).fit() == 0
        assert stage.table is not None
        assert (stage.table.rates() != 1).all()
        weights = torch.cat([parameter.detach().flatten() for parameter in stage.players["model"].parameters()])
        ends.append((weights, stage.memory["losses"], stage.memory["counts"]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


def test_all_of_the_model_takes_part(gradient: Gradient) -> None:
    """The text encoder too: no weight is without a gradient, so that nothing escapes the comparison."""
    assert (gradient(8) != 0).double().mean() > 0.9
