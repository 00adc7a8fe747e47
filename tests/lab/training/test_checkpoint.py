"""Checkpoints are whole or not there, and say so."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from lab.errors import BadData, Refused, StorageFailed
from lab.training import checkpoint
from lab.training.checkpoint import Snapshot, clean, defect, identity, latest, load, save

FILES = ["MANIFEST.json", "ema_0.050.safetensors", "model.safetensors", "optim.safetensors", "state.json"]
FACTS = {"run_id": "0123456789abcdef", "threads": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ckpt"


def snapshot(step: int) -> Snapshot:
    """A state that is different at every step."""
    tensors = {
        stem: {"a.weight": torch.full((3, 5), step + shift), "a.bias": torch.arange(7.0) * step}
        for shift, stem in enumerate(("model", "ema_0.050", "optim"))
    }
    return Snapshot(tensors, {"step": step, "seen": 8 * step, "seconds": 0.1 + 0.2})


def steps(root: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in root.glob("step-*"))


def flip(path: Path, bit: int = 0, position: float = 0.5) -> None:
    """Flip one bit somewhere in a file."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def test_what_was_saved_is_loaded(root: Path) -> None:
    folder = save(root, snapshot(3), FACTS)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    back, given = load(folder), snapshot(3)
    assert back.state == given.state
    assert back.tensors.keys() == given.tensors.keys()
    for stem, tensors in given.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(back.tensors[stem][name], tensor)


def test_the_manifest_says_where_it_comes_from(root: Path) -> None:
    manifest = json.loads((save(root, snapshot(3), FACTS) / "MANIFEST.json").read_text())
    assert FACTS.items() <= manifest.items()
    assert sorted(manifest["files"]) == FILES[1:]
    assert all({"size", "sha256"} == file.keys() for file in manifest["files"].values())


def test_tensors_of_any_layout_and_aliases_are_saved(root: Path) -> None:
    images = torch.arange(16.0).reshape(1, 2, 2, 4)
    given = {
        "last": images.to(memory_format=torch.channels_last),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "number": torch.tensor(1.5),
    }
    back = load(save(root, Snapshot({"model": given}, {"step": 1, "seen": 1}), FACTS)).tensors["model"]
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.02, 0.5, 0.98])
def test_one_flipped_bit_is_found(root: Path, name: str, position: float) -> None:
    folder = save(root, snapshot(3), FACTS)
    flip(folder / name, position=position)
    problem = defect(folder)
    assert problem is not None
    assert (
        "manifest" in problem.lower()
        if name == "MANIFEST.json"
        else problem == f"{name} is not what was written (hash differs)"
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 10), "model.safetensors has 10 bytes instead of"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "MANIFEST.json").unlink(), "unreadable manifest"),
        (lambda folder: (folder / "MANIFEST.json").write_text("[]"), "unreadable manifest"),
        (
            lambda folder: (folder / "MANIFEST.json").write_text('{"format_version": 1, "files": {"a": {}}}'),
            "unreadable manifest",
        ),
        (
            lambda folder: (folder / "MANIFEST.json").write_text('{"format_version": 2}'),
            "written in format 2, this version reads up to 1",
        ),
        (lambda folder: (folder / "extra.safetensors").touch(), "unexpected extra.safetensors"),
        (shutil.rmtree, "unreadable manifest"),
    ],
)
def test_other_damage_is_named_too(root: Path, spoil, problem: str) -> None:
    folder = save(root, snapshot(3), FACTS)
    assert defect(folder) is None
    spoil(folder)
    assert problem in str(defect(folder))
    with pytest.raises(Refused, match=r"cannot be used: .*choose another"):
        load(folder)


def test_the_newest_good_one_is_found_and_broken_ones_are_told_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest(root) is None
    for step in (8, 9, 10):
        save(root, snapshot(step), FACTS, keep_last=3)
    flip(root / "step-00000010" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert latest(root) == root / "step-00000009"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000010 is skipped: model.safetensors is not what was written" in caplog.text


def test_when_all_are_broken_nothing_is_deleted(root: Path) -> None:
    for step in (1, 2):
        flip(save(root, snapshot(step), FACTS) / "state.json")
    with pytest.raises(
        BadData, match=r"every checkpoint in .* is broken \(step-00000002: state.json .*; step-00000001: .*restore one"
    ):
        latest(root)
    assert steps(root) == [1, 2]


PLACES = [
    "tensors",
    "after_tensors",
    "after_state",
    "after_manifest",
    "before_rename",
    "after_rename",
    "before_retention",
    "in_retention",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_save_cut_short_leaves_the_old_one_or_the_new_one(
    root: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(root, snapshot(step), FACTS)

    def cut(name: str) -> None:
        if name == place:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "failpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        save(root, snapshot(3), FACTS)
    newest = latest(root)
    assert newest is not None
    published = PLACES.index(place) >= PLACES.index("after_rename")
    assert load(newest).state["step"] == (3 if published else 2)
    clean(root)
    assert [path for path in root.iterdir() if not path.name.startswith("step-")] == []


def test_a_full_disk_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root, snapshot(1), FACTS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("safetensors.torch.save_file", "lab.training.checkpoint.sync", "pathlib.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(
                StorageFailed, match=r"could not be written \(.*No space left on device\); the one before it is intact"
            ):
                save(root, snapshot(2), FACTS)
        assert defect(root / "step-00000001") is None
        assert list(root.glob(".tmp-*")) == []


def test_a_folder_that_cannot_be_made(root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(StorageFailed, match="could not be written"):
        save(root, snapshot(1), FACTS)


def test_a_checkpoint_that_reads_back_wrong_deletes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(root, snapshot(step), FACTS)

    def lie(name: str) -> None:
        if name == "after_rename":
            flip(root / "step-00000003" / "optim.safetensors")

    monkeypatch.setattr(checkpoint, "failpoint", lie)
    with pytest.raises(StorageFailed, match=r"reads back wrong \(optim.safetensors"):
        save(root, snapshot(3), FACTS)
    assert steps(root) == [1, 2, 3]


def test_a_broken_folder_of_the_same_step_is_replaced(root: Path) -> None:
    flip(save(root, snapshot(3), FACTS) / "model.safetensors")
    assert defect(save(root, snapshot(3), FACTS)) is None
    assert [path.name for path in root.iterdir()] == ["step-00000003"]


def test_everything_is_flushed_before_it_is_named_and_deleted_last(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(root, snapshot(step), FACTS)
    acts: list[str] = []
    sync, rename, rmtree = checkpoint.sync, Path.rename, shutil.rmtree
    monkeypatch.setattr(checkpoint, "sync", lambda path: (acts.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(
        Path, "rename", lambda path, target: (acts.append(f"rename to {target.name}"), rename(path, target))[1]
    )
    monkeypatch.setattr(
        shutil,
        "rmtree",
        lambda path, **more: (acts.append(f"delete {path.name}") if path.exists() else None, rmtree(path, **more)),
    )
    save(root, snapshot(3), FACTS)
    draft = f".tmp-step-00000003-{os.getpid()}"
    assert sorted(acts[:5]) == sorted(f"sync {name}" for name in FILES)
    assert acts[5:] == [f"sync {draft}", "rename to step-00000003", "sync ckpt", "delete step-00000001"]


def test_retention_counts_only_what_verifies(root: Path) -> None:
    for step in range(1, 5):
        save(root, snapshot(step), FACTS, keep_last=2)
    assert steps(root) == [3, 4]
    flip(root / "step-00000004" / "model.safetensors")
    save(root, snapshot(5), FACTS, keep_last=2)
    assert steps(root) == [3, 4, 5]  # 4 is broken, so 3 is the second that counts
    with pytest.raises(AssertionError, match="one checkpoint is none"):
        save(root, snapshot(6), FACTS, keep_last=1)


def test_an_old_one_that_will_not_go_is_no_reason_to_stop(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save(root, snapshot(step), FACTS)
    rmtree = shutil.rmtree

    def stubborn(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "step-00000001":
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", stubborn)
    with caplog.at_level(logging.WARNING):
        assert save(root, snapshot(3), FACTS).name == "step-00000003"
    assert "could not be deleted" in caplog.text


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_modes_of_their_neighbours(root: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = save(root, snapshot(1), FACTS)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}


def test_an_identity_is_of_the_content(root: Path, tmp_path: Path) -> None:
    first, same, other = (
        save(tmp_path / name, snapshot(step), {"run_id": name}) for name, step in (("a", 1), ("b", 1), ("c", 2))
    )
    assert identity(first) == identity(same) != identity(other)
    assert len(identity(first)) == 16
