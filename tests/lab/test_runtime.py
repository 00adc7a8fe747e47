"""Where a run computes: asked, measured once, and then fixed."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lab import runtime as module
from lab.errors import Refused
from lab.runtime import Runtime, RuntimeConfig, moved, resolve, start
from lab.world import World

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Runtime]:
    """Replaces the stop watch: bf16 takes half the time of fp32, channels last a tenth less."""
    seen: list[Runtime] = []

    def seconds(runtimes: list[Runtime]) -> list[float]:
        seen.extend(runtimes)
        return [(0.5 if r.precision == "bf16" else 1.0) * (0.9 if r.channels_last else 1.0) for r in runtimes]

    monkeypatch.setattr(module, "_step_seconds", seconds)
    return seen


def test_auto_becomes_what_measures_fastest(measured: list[Runtime]) -> None:
    found = resolve(RuntimeConfig(device="cpu"))
    assert (found.device, found.precision, found.channels_last) == ("cpu", "bf16", True)
    assert len(measured) == 4


def test_what_was_asked_for_is_not_measured_against_anything_else(measured: list[Runtime]) -> None:
    assert resolve(RuntimeConfig(device="cpu", precision="fp32")).precision == "fp32"
    assert {runtime.precision for runtime in measured} == {"fp32"}
    assert resolve(RuntimeConfig(device="cpu", channels_last=False)).channels_last is False


def test_a_resolved_configuration_stays_as_it_is(measured: list[Runtime]) -> None:
    config = RuntimeConfig(device="cpu", precision="fp32", channels_last=False)
    assert resolve(config) == config
    assert start(config) == Runtime(CPU, "fp32", False)
    assert measured == []


def test_the_device_stays_as_asked_so_that_a_run_can_move(measured: list[Runtime]) -> None:
    assert resolve(RuntimeConfig(device="auto")).device == "auto"


def test_threads_are_set_before_anything_is_measured(measured: list[Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[int] = []

    def seconds(runtimes: list[Runtime]) -> list[float]:
        during.append(torch.get_num_threads())
        return [1.0] * len(runtimes)

    monkeypatch.setattr(module, "_step_seconds", seconds)
    resolve(RuntimeConfig(device="cpu", threads=2))
    assert set(during) == {2}
    start(RuntimeConfig(device="cpu", precision="fp32", channels_last=False, threads=1))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_best_device_there_is(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert start(RuntimeConfig(precision="fp32", channels_last=False)).device.type == expected


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("act", [resolve, start])
def test_an_absent_device_is_refused_with_a_remedy(device: str, act, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(Refused, match=f"runtime.device={device}.*runtime.device=auto or cpu"):
        act(RuntimeConfig.model_validate({"device": device}))


@pytest.mark.parametrize(
    ("config", "trained_on", "expected"),
    [
        ({"device": "cuda", "precision": "bf16"}, "cuda", {"device": "auto", "precision": "fp32"}),
        ({"device": "auto", "precision": "fp16"}, "cuda", {"device": "auto", "precision": "fp32"}),
        ({"device": "cuda", "precision": "fp32"}, "cuda", {"device": "auto", "precision": "fp32"}),
        ({"device": "auto", "precision": "bf16"}, "cpu", {"device": "auto", "precision": "bf16"}),
        ({"device": "cpu", "precision": "bf16"}, None, {"device": "cpu", "precision": "bf16"}),
    ],
)
def test_a_run_of_another_device_is_used_in_float32(
    config: dict, trained_on: str | None, expected: dict, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    before = RuntimeConfig.model_validate({**config, "channels_last": True})
    after = moved(before, trained_on)
    assert after == RuntimeConfig.model_validate({**expected, "channels_last": True})
    assert bool(caplog.messages) == (before.precision != after.precision)


def test_the_measurement_is_a_time_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    runtimes = [Runtime(CPU, "bf16", True), Runtime(CPU, "fp32")]
    seconds = module._step_seconds(runtimes, width=32, batch=2, repeats=2)
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_hopelessly_slow_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"fp32": iter([9.0, 2.0, 1.0, 3.0]), "bf16": iter([100.0])}
    monkeypatch.setattr(module, "_step", lambda runtime, *_: lambda: next(passes[runtime.precision]))
    assert module._step_seconds([Runtime(CPU, "fp32"), Runtime(CPU, "bf16")], repeats=2) == [1.0, 100.0]


def test_on_a_gpu_the_first_pass_loads_libraries_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"fp32": iter([9.0, 2.0, 1.0, 3.0]), "bf16": iter([100.0, 0.5, 0.7])}
    monkeypatch.setattr(module, "_step", lambda runtime, *_: lambda: next(passes[runtime.precision]))
    runtimes = [Runtime(torch.device("cuda"), "fp32"), Runtime(torch.device("cuda"), "bf16")]
    assert module._step_seconds(runtimes, repeats=2) == [1.0, 0.5]


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_the_precision_of_products(precision: str, expected: torch.dtype) -> None:
    with Runtime(CPU, precision).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
        assert torch.ones(2).softmax(dim=0).dtype == torch.float32


@pytest.mark.parametrize("last", [False, True])
def test_images_and_kernels_share_one_memory_layout(last: bool) -> None:
    runtime = Runtime(CPU, "fp32", channels_last=last)
    layout = torch.channels_last if last else torch.contiguous_format
    images = torch.arange(2.0 * 3 * 4 * 4).view(2, 3, 4, 4)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        assert runtime.batch(given).is_contiguous(memory_format=layout)
        assert torch.equal(runtime.batch(given), images)
    assert runtime.place(nn.Conv2d(4, 4, 3)).weight.is_contiguous(memory_format=layout)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = RuntimeConfig(device="cuda", precision="fp32", channels_last=False)
    with pytest.raises(Refused, match=r"process 1 of this machine has no GPU.* 1: start at most .*runtime.device=cpu"):
        start(config, World(rank=3, size=4, local_rank=1))


def test_only_a_gpu_has_a_memory_to_tell_of() -> None:
    assert Runtime(CPU).peak_memory() is None
