"""What stands between a drawn picture and a larger one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor

from diffusion.pipeline import Poll, Request
from lab.images import from_uint8
from scripts.assembly import saved, upscaling
from superres.pipeline import enlarged
from tests.faults import Scripts


class Doubling:
    """Doubles pictures and keeps whose they were."""

    factor = 2

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def within(self, chunk: int) -> Self:
        self.chunk = chunk
        return self

    def __call__(self, images: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        poll()
        assert len(images) == len(requests)
        self.heard += [(request.prompt, seed) for request in requests]
        return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_each_picture_passes_every_upscaler_with_its_own_request() -> None:
    requests = [Request("a"), Request("b"), Request("c")]
    drawn = from_uint8(torch.arange(3 * 3 * 2 * 2, dtype=torch.uint8).reshape(3, 3, 2, 2))
    polls: list[None] = []
    first, second = Doubling(), Doubling()
    chunks = list(enlarged(iter(drawn.split(2)), (first, second), requests, 5, 4, lambda: polls.append(None)))
    assert [tuple(chunk.shape) for chunk in chunks] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert torch.equal(torch.cat(chunks)[:, :, ::4, ::4], drawn)
    assert first.heard == second.heard == [("a", 5), ("b", 5), ("c", 5)]
    assert len(polls) == 4
    assert first.chunk == second.chunk == 4


def test_without_upscalers_pictures_are_as_they_were_drawn() -> None:
    drawn = torch.rand(3, 3, 2, 2)
    assert torch.equal(torch.cat(list(enlarged([drawn], (), [Request("a")] * 3, 0, 4, lambda: None))), drawn)


def test_a_run_that_makes_nothing_larger_is_refused(script: Scripts, reference: Path, tmp_path: Path) -> None:
    for path, answer in (
        (reference, "has stage.kind=diffusion, which makes no picture larger"),
        ("/nowhere", "is not a run"),
    ):
        done = script("sample", reference, "a red circle", "--upscale", path, "--out", tmp_path)
        assert done.code == 2
        assert answer in done.err.splitlines()[-1]
    assert list(tmp_path.glob("*.png")) == []


def test_upscalers_follow_each_other_and_stand_in_the_recipe(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.assembly import drawing
    from scripts.interface import gallery

    monkeypatch.setattr(upscaling, "upscaler", lambda found: Doubling())
    plain = drawing.trained(reference)
    trained = upscaling.followed_by(plain, [reference, reference])
    name = saved.read(reference).origin["checkpoint"]
    assert trained.origin == {**plain.origin, "upscale": f"{name} {name}"}
    sampling = trained.experiment.stage.sampling
    pictures = gallery.wanted(trained, ["a red circle"], 2, 0, "", sampling)
    found, _ = gallery.draw(trained, pictures, 0, sampling, tmp_path, lambda: None)
    images = [gallery.read_image(tmp_path / picture.name) for picture in found]
    assert [image.shape for image in images] == [(3, 64, 64)] * 2
