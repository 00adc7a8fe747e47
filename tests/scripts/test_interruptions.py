"""Drawing and measuring, killed, stopped or short of memory: what is finished stays, the rest comes out the same."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.images import read_image
from lab.lock import Lock
from tests.faults import Done, Scripts, signal_at, small_memory

PROMPTS = ("a red circle above a blue square", "", "a green ring")
STOPPED = "what is finished is kept, and the same command goes on"


def files(out: Path) -> dict[str, bytes]:
    """All that a folder holds, half-written files too; the lock aside."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def is_finished(out: Path, figures: bytes) -> bool:
    """Whether an evaluation is there, and nothing that it kept on the way."""
    names = {path.name for path in out.iterdir()}
    beside = {"figures.outcomes.jsonl", "figures.pictures"}
    return (out / "figures.json").read_bytes() == figures and names == {"figures.json", *beside}


def pictures(out: Path) -> dict[str, int]:
    """When each picture was written; a picture that is not whole is an error."""
    paths = sorted(out.glob("[0-9]*.png"))
    assert all(read_image(path).shape == (3, 16, 16) for path in paths)
    return {path.name: path.stat().st_mtime_ns for path in paths}


def lines(index: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in index.splitlines()]


def index(out: Path) -> list[dict[str, Any]]:
    return lines((out / "index.jsonl").read_bytes())


@pytest.fixture(scope="module")
def whole(script: Scripts, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The files of 48 pictures that were drawn without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert script("sample", reference, *PROMPTS, "--num", 16, "--out", out).code == 0
    assert len(pictures(out)) == 48
    return files(out)


def test_killed_drawing_goes_on_to_the_same_files(
    script: Scripts, reference: Path, tmp_path: Path, whole: Mapping[str, bytes]
) -> None:
    """A chunk of 4 pictures takes 3 passes; a file takes 2 calls of fsync, before its name appears and after."""
    before: dict[str, int] = {}
    for place, nth, num, half_written in (
        ("forward", 8, 8, 0),
        ("fsync", 21, 18, 1),
        ("fsync", 40, 38, 0),
        ("fsync", 21, 48, 1),  # the index
    ):
        fault = (signal_at, place, nth, signal.SIGKILL)
        done = script("sample", reference, *PROMPTS, "--num", 16, "--out", tmp_path, fault=fault)
        assert done.code == -signal.SIGKILL
        now = pictures(tmp_path)
        assert (len(now), len(list(tmp_path.glob(".*.tmp")))) == (num, half_written)
        assert before.items() <= now.items()
        before = now
    done = script("sample", reference, *PROMPTS, "--num", 16, "--out", tmp_path)
    assert "0 drawn, 48 there already" in done.out
    assert pictures(tmp_path) == before
    assert files(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_within_a_chunk_and_keeps_the_finished_ones(
    script: Scripts, reference: Path, tmp_path: Path, whole: Mapping[str, bytes], number: signal.Signals
) -> None:
    command = ("sample", reference, *PROMPTS, "--num", 4, "--out", tmp_path)
    done = script(*command, fault=(signal_at, "forward", 7, number))
    assert (done.code, done.out) == (128 + number, "")
    assert done.err.splitlines()[-1] == f"stopped by {number.name}: {STOPPED}"
    before, listed = pictures(tmp_path), index(tmp_path)
    assert listed == [entry for entry in lines(whole["index.jsonl"]) if entry["number"] < 4][:8]
    assert {entry["file"] for entry in listed} == before.keys()
    assert "4 drawn, 8 there already" in script(*command).out
    assert before.items() <= pictures(tmp_path).items()
    assert len(index(tmp_path)) == len(pictures(tmp_path)) == 12
    assert {name: whole[name] for name in pictures(tmp_path)}.items() <= files(tmp_path).items()


def warnings(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("WARNING")]


def test_out_of_memory_halves_the_chunk_and_says_so(script: Scripts, reference: Path, tmp_path: Path) -> None:
    """What was drawn with the chunk that was asked for stays, and each recipe holds the chunk that drew its picture."""
    out, asked = tmp_path / "out", ("sample", reference, *PROMPTS)
    assert script(*asked, "--num", 1, "--out", out).code == 0
    before = pictures(out)
    done = script(*asked, "--num", 4, "--out", out, fault=(small_memory, 2))
    assert done.code == 0
    assert "9 drawn, 3 there already" in done.out
    assert warnings(done) == ["WARNING: out of memory with chunk 4: going on with chunk 2"]
    assert before.items() <= pictures(out).items()
    assert [entry["sampling"]["chunk"] for entry in index(out)] == [4] * 3 + [2] * 9
    assert script(*asked, "--num", 4, "--chunk", 2, "--out", tmp_path / "small").code == 0
    small, new = files(tmp_path / "small"), set(pictures(out)) - set(before)
    assert len(new) == 9
    assert {name: small[name] for name in new}.items() <= files(out).items()
    assert "0 drawn, 12 there already" in script(*asked, "--num", 4, "--out", out, fault=(small_memory, 2)).out
    assert "9 drawn, 3 there already" in script(*asked, "--num", 4, "--out", out).out  # as asked, now that it fits


def test_out_of_memory_with_one_picture_is_an_error(script: Scripts, reference: Path, tmp_path: Path) -> None:
    done = script("sample", reference, *PROMPTS, "--out", tmp_path, fault=(small_memory, 0))
    assert (done.code, done.out) == (1, "")
    assert len(warnings(done)) == 2
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1] == (
        "error: out of memory with a single image per pass (chunk 1): "
        "stop what else uses the device, or take one with more memory"
    )
    assert set(files(tmp_path)) <= {"index.jsonl"}


def test_one_process_at_a_time_draws_into_a_folder(script: Scripts, reference: Path, tmp_path: Path) -> None:
    (tmp_path / ".notes.tmp").write_text("mine")  # no leftover of ours
    lock = Lock(tmp_path / ".lock")
    done = script("sample", reference, "a ring", "--out", tmp_path)
    lock.release()
    assert done.code == 2
    assert f"{tmp_path}: process " in done.err.splitlines()[-1]
    assert files(tmp_path) == {".notes.tmp": b"mine"}
    assert script("sample", reference, "a ring", "--out", tmp_path).code == 0
    assert files(tmp_path)[".notes.tmp"] == b"mine"


EVALUATE = ("--num", 2, "--no-distances")


@pytest.fixture(scope="module")
def figures(script: Scripts, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An evaluation in chunks of 2, without any interruption."""
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    assert script("evaluate", reference, *EVALUATE, "--chunk", 2, "--json", path).code == 0
    return path.read_bytes()


def test_a_killed_evaluation_draws_no_picture_again(
    script: Scripts, reference: Path, tmp_path: Path, figures: bytes
) -> None:
    """Its 14 pictures are 7 chunks of 3 passes: two are drawn before the kill, five before a signal, then the rest."""
    command = ("evaluate", reference, *EVALUATE, "--chunk", 2, "--json", tmp_path / "figures.json")
    assert script(*command, fault=(signal_at, "forward", 8, signal.SIGKILL)).code == -signal.SIGKILL
    for passes, finished in ((11, 5), (6, 7)):  # the last signal comes before pictures are read, in the last pass
        stopped = script(*command, fault=(signal_at, "forward", passes, signal.SIGTERM))
        assert stopped.code == 143
        assert stopped.err.splitlines()[-1] == f"stopped by SIGTERM: {STOPPED}"
        (kept,) = tmp_path.iterdir()
        assert len(list(kept.glob("*.safetensors"))) == finished
    assert script(*command, fault=(signal_at, "forward", 1, signal.SIGKILL)).code == 0  # or one more pass would end it
    assert is_finished(tmp_path, figures)


def test_out_of_memory_measures_with_half_the_chunk(
    script: Scripts, reference: Path, tmp_path: Path, figures: bytes
) -> None:
    path = tmp_path / "figures.json"
    done = script("evaluate", reference, *EVALUATE, "--json", path, fault=(small_memory, 2))
    assert done.code == 0
    assert warnings(done) == ["WARNING: out of memory with chunk 4: going on with chunk 2"]
    assert is_finished(tmp_path, figures)
