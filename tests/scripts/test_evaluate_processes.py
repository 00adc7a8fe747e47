"""Several processes draw and measure what one does: the same pictures, the same figures, and none of them twice."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from lab.images import save_png
from lab.randomness import normal
from lab.rundir import RunDir
from scripts.assembly import experiments
from tests.faults import TINY, TINY_SCORER, Done, Scripts, signal_at, small_disk, small_memory

PASSES = 3  # of the network, for a chunk of 4 pictures
CHUNKS = 3 + 2 + 2 + 2  # of 10 prompts of pairs, and 5 of each other kind
NOBODY: tuple[tuple[Any, ...], ...] = ((), ())

Evaluate = Callable[..., list[Done]]


@pytest.fixture
def evaluate(script: Scripts, reference: Path) -> Evaluate:
    """Evaluates the tiny run in several processes, each with its faults, into a folder."""

    def evaluate(out: Path, faults: Sequence[Sequence[Any]], *words: object) -> list[Done]:
        command = ("evaluate", reference, "--num", 5, "--json", out / "a.json", *(words or ("--metrics", "prompt")))
        return script.together(*command, faults=faults)

    return evaluate


def files(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, by its path below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_measure_what_one_does_and_one_goes_on_with_what_they_have_drawn(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    assert [done.code for done in evaluate(one, [[]])] == [0]
    done = evaluate(two, [[], [(small_disk, 0)]])  # the second can write nothing
    assert [each.code for each in done] == [0, 0], done[1].err
    assert "prompt accuracy" in done[0].out
    assert (done[1].out, done[1].err) == ("", "")
    assert files(two) == files(one)

    kill = (signal_at, "forward", 2 * PASSES + 2, SIGKILL)  # in its third chunk
    done = evaluate(killed, [[], [kill]])
    assert [each.code for each in done] == [75, -SIGKILL], done[0].err
    assert "process 0 lost the others" in done[0].err
    assert "last seen: process 1 at part 2 of 'pair_heldout_phrasings'; the same command" in done[0].err
    kept = files(killed)
    assert len(kept) == 3 + 2
    none_is_left = (signal_at, "forward", (CHUNKS - len(kept)) * PASSES + 1, SIGKILL)
    assert [each.code for each in evaluate(killed, [[none_is_left]])] == [0]
    assert files(killed) == files(one)


@pytest.mark.slow
def test_two_go_on_with_what_one_has_drawn(evaluate: Evaluate, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert [done.code for done in evaluate(one, [[]])] == [0]
    kill = (signal_at, "forward", 6 * PASSES + 1, SIGKILL)
    assert [done.code for done in evaluate(two, [[kill]])] == [-SIGKILL]
    assert len(files(two)) == 6
    none_is_left = [[(signal_at, "forward", part * PASSES + 1, SIGKILL)] for part in (2, 1)]
    assert [done.code for done in evaluate(two, none_is_left)] == [0, 0]
    assert files(two) == files(one)


@pytest.mark.slow
def test_a_signal_ends_all_when_the_chunks_in_work_are_saved(evaluate: Evaluate, tmp_path: Path) -> None:
    stops = [[(signal_at, "forward", nth, SIGTERM)] for nth in (1, 2)]
    done = evaluate(tmp_path, stops)
    assert [each.code for each in done] == [128 + SIGTERM] * 2, [each.err for each in done]
    assert "what is finished is kept" in done[0].err
    assert len(files(tmp_path)) == 2


@pytest.mark.slow
def test_where_memory_runs_out_on_one_all_go_on_with_half_the_chunk(evaluate: Evaluate, tmp_path: Path) -> None:
    small, halved = tmp_path / "small", tmp_path / "halved"
    assert [done.code for done in evaluate(small, [[]], "--metrics", "prompt", "--chunk", 2)] == [0]
    done = evaluate(halved, [[], [(small_memory, 2)]])
    assert [each.code for each in done] == [0, 0], [each.err for each in done]
    assert all("out of memory with chunk 4: going on with chunk 2" in each.err for each in done)
    assert files(halved) == files(small)


@pytest.mark.slow
def test_figures_of_networks_are_the_same_and_features_are_made_once(
    evaluate: Evaluate, encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    measured = ("--num", 10, "--metrics", "clip,cmmd", "--clip", encoder_folder("clip"))
    found = []
    for name, faults in (("one", [[]]), ("three", [[], [], []])):
        done = evaluate(tmp_path / name, faults, *measured, "--cache", tmp_path / f"{name}-cache")
        assert [each.code for each in done] == [0] * len(faults), [each.err for each in done]
        found.append(files(tmp_path / name))
    assert found[0] == found[1]
    assert files(tmp_path / "one-cache") == files(tmp_path / "three-cache")
    killed, cache = tmp_path / "killed", tmp_path / "killed-cache"
    drawn = (signal_at, "fsync", 2 * 5 + 1, SIGKILL)  # of five chunks, each a file and its folder
    assert [done.code for done in evaluate(killed, [[drawn]], *measured, "--cache", cache)] == [-SIGKILL]
    none_is_left = [[(signal_at, "forward", 1, SIGKILL)]] * 2
    assert [done.code for done in evaluate(killed, none_is_left, *measured, "--cache", cache)] == [0, 0]
    assert files(killed) == found[0]


@pytest.mark.slow
def test_pictures_of_ones_own_and_curves_of_guidance(script: Scripts, tmp_path: Path) -> None:
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    for number in range(160):
        save_png(pictures / f"{number:03}.png", normal(0, "picture", [number], (3, 8, 8))[0].clamp(-1, 1))
        (pictures / f"{number:03}.txt").write_text(f"picture {number}")
    data = f"data={{kind: folder, path: {pictures}, size: 16, split: {{heldout: 0.4}}, cache: {tmp_path / 'index'}}}"
    done = script("train", TINY, data, "train.steps=2", "train.preview_every=0", "--run", run)
    assert done.code == 0, done.err
    command = ("evaluate", run, "--num", 20, "--no-distances", "--guidance", "1,2")
    for name, faults in (("one", [[]]), ("two", NOBODY)):
        ended = script.together(*command, "--json", tmp_path / name / "a.json", faults=faults)
        assert [each.code for each in ended] == [0] * len(faults), [each.err for each in ended]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert {"a.json", "a-1.json", "a-2.json", "a-1-heldout.png"} <= files(tmp_path / "two").keys()


@pytest.mark.slow
def test_two_processes_draw_the_files_of_one(script: Scripts, reference: Path, tmp_path: Path) -> None:
    command = ("sample", reference, "a red circle", "", "a green ring", "--num", 6, "--size", "24x16", "--out")
    assert script(*command, tmp_path / "one").code == 0
    done = script.together(*command, tmp_path / "two", faults=[[], [(small_disk, 0)]])
    assert [each.code for each in done] == [0, 0], done[1].err
    assert "18 drawn, 0 there already" in done[0].out
    assert (done[1].out, done[1].err) == ("", "")
    kill = [[], [(signal_at, "forward", PASSES + 2, SIGKILL)]]
    assert [each.code for each in script.together(*command, tmp_path / "killed", faults=kill)] == [75, -SIGKILL]
    assert "10 drawn, 8 there already" in script.together(*command, tmp_path / "killed", faults=NOBODY)[0].out
    one, two, killed = (files(tmp_path / name) for name in ("one", "two", "killed"))
    for found in (one, two, killed):
        del found[".lock"]
    assert one == two == killed


@pytest.mark.slow
def test_what_one_process_measures_is_refused_to_several(script: Scripts, reference: Path, tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "scorer", experiments.load(TINY_SCORER, [])):
        pass
    for command, answer in (
        ((tmp_path / "scorer",), f"{tmp_path / 'scorer'} trains a scorer, which is measured by one process"),
        ((reference, "--best-of", "1,2"), "--best-of is measured by one process: leave torchrun out"),
        ((reference, "--sampler", "ddpm", "--variance", "optimal"), "variance optimal is measured at its first use"),
    ):
        done = script.together("evaluate", *command, faults=NOBODY)
        assert 2 in {each.code for each in done}
        assert {each.code for each in done} <= {2, -SIGTERM, 75}
        assert any(answer in each.err for each in done)
        assert [each.out for each in done] == ["", ""]
    assert json.loads((reference / "STATUS.json").read_text())["state"] == "finished"
