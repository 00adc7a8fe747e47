"""What only a CUDA device can show: its numbers are the CPU's, its memory runs out for real, and its runs resume.

    pytest -m gpu                       # on a machine with a GPU; elsewhere nothing of it is run

That pictures do not depend on what they are asked for with, and that noise is the same on every device, is tested
beside the CPU's cases in diffusion/test_pipeline.py.
"""

from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM

import pytest
import torch
from torch import Tensor

from lab.data.sources import source
from lab.randomness import seeded
from lab.rundir import RunDir
from lab.runtime import start
from lab.training import checkpoint
from scripts.assembly import assemble, experiments
from tests.faults import ROOT, TINY, Scripts, all_bits, little_memory, signal_at
from tests.stages import InDouble

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

GPU = "runtime.device=cuda"
STEADY = ("stage.unet.dropout=0", "train.log_every=1", "train.preview_every=0")  # devices drop out other units
AT_ONCE = "stage.critic.start_step=0"
PRESETS = {
    "tiny": (),
    "tiny_cascade": (),
    "tiny_fast": (AT_ONCE,),
    "tiny_scorer": (),
    "tiny_vae": (AT_ONCE,),
}


def losses(run: Path) -> Tensor:
    return torch.tensor([line["train/loss"] for line in RunDir.view(run).metrics() if "train/loss" in line])


def learned(preset: str, device: str) -> Mapping[str, Tensor]:
    """The losses of six samples and their gradient, in float64, by player of a stage that is awake."""
    words = (f"runtime.device={device}", "runtime.precision=fp32", "runtime.channels_last=false", *PRESETS[preset])
    experiment = assemble.complete(experiments.load(ROOT / "tests" / f"{preset}.yaml", words))
    runtime = start(experiment.runtime)
    stage = assemble.stage(experiment, runtime)
    for player in stage.players.values():
        with seeded(0, "awake"), torch.no_grad():
            for parameter in player.cpu().double().parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        runtime.place(player).eval()
    batch = InDouble(source(experiment.data), experiment.seed).batch(range(6))
    batch = batch.with_images(runtime.batch(batch.images))
    found = {}
    for name, player in stage.players.items():
        loss, _ = stage.loss(name, batch)
        loss.sum().backward()
        gradients = [p.grad.flatten() for p in player.parameters() if p.grad is not None]
        found[name] = torch.cat([loss.detach(), *gradients]).cpu()
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_their_gradient_are_those_of_the_cpu(preset: str) -> None:
    """In float64, where no matrix unit keeps fewer bits."""
    cpu, cuda = learned(preset, "cpu"), learned(preset, "cuda")
    for name, expected in cpu.items():
        assert len(expected) > 100
        torch.testing.assert_close(cuda[name], expected, rtol=1e-7, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.1)])
def test_a_run_on_a_gpu_follows_that_of_the_cpu(
    precision: str, tolerance: float, script: Scripts, tmp_path: Path
) -> None:
    """The same samples, noise and times: losses differ by rounding alone, which grows from step to step."""
    cpu = script("train", TINY, *STEADY, "--run", tmp_path / "cpu")
    words = (TINY, *STEADY, GPU, f"runtime.precision={precision}")
    gpu = script("train", *words, "--run", tmp_path / "gpu", fault=(all_bits,))
    assert (cpu.code, gpu.code) == (0, 0), cpu.err + gpu.err
    expected = losses(tmp_path / "cpu")
    assert len(expected) == 9
    torch.testing.assert_close(losses(tmp_path / "gpu"), expected, rtol=tolerance, atol=0)
    assert all(0 < line["time/peak_memory_gib"] < 1 for line in RunDir.view(tmp_path / "gpu").metrics())


@pytest.mark.parametrize(
    "words",
    [
        ["runtime.precision=fp32"],
        ["runtime.precision=bf16"],
        ["runtime.precision=fp16"],
        ["runtime.precision=auto", "runtime.channels_last=auto"],
        ["runtime.precision=bf16", "runtime.channels_last=true", "runtime.recompute=true", "train.workers=2"],
    ],
    ids=["fp32", "bf16", "fp16", "auto", "recompute"],
)
def test_a_killed_run_goes_on_bit_for_bit(words: list[str], script: Scripts, tmp_path: Path) -> None:
    done = script("verify_resume", TINY, GPU, *words, "--steps", 6, "--kills", 1, "--dir", tmp_path)
    assert done.code == 0, done.out + done.err
    assert "bit-identical: " in done.out


def test_a_run_moves_from_the_gpu_to_the_cpu(script: Scripts, tmp_path: Path) -> None:
    whole = script("train", TINY, *STEADY, "--run", tmp_path / "whole")
    moved = ("train", TINY, *STEADY, "--run", tmp_path / "moved")
    faults = [(all_bits,), (signal_at, "loss", 8, SIGTERM)]  # in step 4, of two passes each
    [first] = script.together(*moved, GPU, faults=[faults])
    then = script("train", "--resume", tmp_path / "moved", "runtime.device=cpu")
    assert (whole.code, first.code, then.code) == (0, 128 + SIGTERM, 0), first.err + then.err
    torch.testing.assert_close(losses(tmp_path / "moved"), losses(tmp_path / "whole"), rtol=1e-3, atol=0)


def test_a_step_that_does_not_fit_is_made_in_smaller_passes(script: Scripts, tmp_path: Path) -> None:
    """Memory runs out in CUDA's own allocator, at 0.6 of what a step takes, and the steps are made all the same."""
    words = (TINY, *STEADY, GPU, "runtime.precision=fp32", "train.batch=4096", "train.micro_batch=0", "train.steps=2")
    enough = script("train", *words, "--run", tmp_path / "enough")
    assert enough.code == 0, enough.err
    peak = max(line.get("time/peak_memory_gib", 0.0) for line in RunDir.view(tmp_path / "enough").metrics())
    little = script("train", *words, "--run", tmp_path / "little", fault=(little_memory, 0.6 * peak))
    assert little.code == 0, little.err
    assert "memory ran out" not in enough.err
    assert "memory ran out" in little.err
    torch.testing.assert_close(losses(tmp_path / "little"), losses(tmp_path / "enough"), rtol=1e-4, atol=0)
    newest = checkpoint.latest(RunDir.view(tmp_path / "little").checkpoints)
    assert newest is not None
    assert checkpoint.load(newest).state["updater"]["micro_batch"] < 4096


def test_pictures_and_figures_of_a_gpu(script: Scripts, tmp_path: Path) -> None:
    """A run is drawn and measured where it was trained, and again: the same files."""
    run = tmp_path / "run"
    assert script("train", TINY, GPU, "--run", run).code == 0
    drawn = [script("sample", run, "a red circle", "--num", 3, "--out", tmp_path / name) for name in "ab"]
    assert [done.code for done in drawn] == [0, 0], drawn[0].err
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).glob("**/*.png")} for n in "ab")
    assert len(first) >= 4
    assert first == second
    assert script("evaluate", run, "--num", 8, "--no-distances").code == 0
