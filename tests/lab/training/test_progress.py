"""The bar, as a terminal would show it, and the warning of a model that waits."""

import pytest

from lab.training.budget import Ending
from lab.training.meter import Meter
from lab.training.progress import Progress


def figures(wait: float) -> dict[str, float]:
    return {"train/loss": 0.25, "time/images_per_second": 99.6, "time/data_wait_share": wait}


def test_the_bar_knows_the_end_once_it_is_decided(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, 0, shown=True) as progress:
        progress.advance(None)
        progress.advance(Ending(5, 9))
        progress.show(figures(0.03))
    last = capsys.readouterr().err.split("\r")[-1]
    assert "5/9" in last
    assert "data_wait=3%, images_per_s=100, loss=0.2500" in last


def test_the_bar_tells_the_memory_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0, 0, shown=True) as progress:
        progress.advance(Ending(1, 2))
        progress.show({**figures(0.0), **Meter().read(8, peak_memory=13.44)})
    assert "memory=13.4GiB" in capsys.readouterr().err.split("\r")[-1]
    assert "time/peak_memory_gib" not in Meter().read(8)


def test_only_the_process_that_writes_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0, 0, shown=False) as progress:
        progress.advance(Ending(1, 1))
        progress.show({"time/images_per_second": 1.0, "time/data_wait_share": 0.0})
    assert capsys.readouterr().err == ""


def test_a_model_that_keeps_waiting_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with Progress(0, 2, shown=False) as progress:
        for wait in (0.5, 0.5, 0.1, 0.5, 0.5):
            progress.show(figures(wait))
        assert caplog.records == []
        for _ in range(5):
            progress.show(figures(0.5))
    assert [record.getMessage() for record in caplog.records] == [
        "the model waits for its data 50 % of the time: raise train.workers (now 2)"
    ]
