"""Checkpoints are whole or not there, and say so."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lab.errors import BadData, Refused, StorageFailed
from lab.training import checkpoint
from lab.training.checkpoint import Snapshot, best, defect, identity, latest, load, prepare, save
from lab.training.retention import Retention

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


def zero(path: Path) -> None:
    """Fill a file with zeros, as some file systems do after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


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
        (lambda folder: zero(folder / "optim.safetensors"), "optim.safetensors is not what was written"),
        (lambda folder: zero(folder / "MANIFEST.json"), "unreadable manifest"),
        (lambda folder: (folder / "MANIFEST.json").write_text("[" * 100_000), "unreadable manifest"),
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
        save(root, snapshot(step), FACTS, Retention(3))
    flip(root / "step-00000010" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert latest(root) == root / "step-00000009"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000010 is skipped: model.safetensors is not what was written" in caplog.text


def test_when_all_are_broken_nothing_is_deleted(root: Path) -> None:
    for step in (1, 2):
        flip(save(root, snapshot(step), FACTS) / "state.json")
    with pytest.raises(
        BadData,
        match=r"every checkpoint in .* is unusable \(step-00000002: state.json .*; step-00000001: .*restore one",
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
    prepare(root, newest)
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
    flushed: dict[str, bytes] = {}
    fsync, rename, rmtree = os.fsync, os.rename, shutil.rmtree

    def watched_fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        acts.append(f"fsync {path.name}")
        if path.is_file():
            flushed[path.name] = path.read_bytes()
        fsync(handle)

    def watched_rename(source: Path, target: Path) -> None:
        acts.append(f"rename {Path(source).name} to {Path(target).name}")
        rename(source, target)

    def watched_rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            acts.append(f"delete {path.name}")
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    monkeypatch.setattr(shutil, "rmtree", watched_rmtree)
    folder = save(root, snapshot(3), FACTS)
    draft = f".tmp-step-00000003-{os.getpid()}"
    at = acts.index(f"fsync {draft}")
    assert set(acts[at - len(FILES) : at]) == {f"fsync {name}" for name in FILES}
    assert acts[at + 1 :] == [
        f"rename {draft} to step-00000003",
        "fsync ckpt",
        "rename step-00000001 to .tmp-old-step-00000001",
        "delete .tmp-old-step-00000001",
    ]
    assert flushed == {name: (folder / name).read_bytes() for name in FILES}


def owners(root: Path) -> dict[str, str]:
    """The run that each checkpoint says it is of, by the folder's name."""
    return {path.parent.name: json.loads(path.read_text())["run_id"] for path in root.glob("*/MANIFEST.json")}


def test_retention_counts_only_what_verifies(root: Path) -> None:
    for step in range(1, 5):
        save(root, snapshot(step), FACTS)
    assert steps(root) == [3, 4]
    flip(root / "step-00000004" / "model.safetensors")
    save(root, snapshot(5), FACTS)
    assert steps(root) == [3, 4, 5]  # 4 is broken, so 3 is the second that counts
    save(root, snapshot(6), FACTS)
    assert steps(root) == [5, 6]


def test_a_folder_without_a_manifest_is_neither_counted_nor_deleted(root: Path) -> None:
    save(root, snapshot(1), FACTS)
    shutil.copytree(root / "step-00000001", root / "step-00000002", ignore=shutil.ignore_patterns("MANIFEST.json"))
    save(root, snapshot(3), FACTS)
    assert steps(root) == [1, 2, 3]
    for step in (4, 5):
        save(root, snapshot(step), FACTS)
    assert steps(root) == [2, 4, 5]


def test_checkpoints_of_another_run_are_left_alone_and_not_gone_on_from(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = "0123456789abcdef", "fedcba9876543210"
    for step in (2, 9):
        save(root, snapshot(step), {"run_id": theirs})
    with pytest.raises(BadData, match=rf"every checkpoint .* of run {theirs}, and this is run {mine}: move it"):
        latest(root, mine)
    for step in (1, 3, 4, 5):
        save(root, snapshot(step), FACTS)
        assert len([owner for owner in owners(root).values() if owner == mine]) == min(step, 2)
    assert owners(root) == {f"step-{step:08d}": mine if step in (4, 5) else theirs for step in (2, 4, 5, 9)}
    caplog.clear()
    assert latest(root, mine) == root / "step-00000005"
    assert f"step-00000009 is skipped: it is of run {theirs}" in caplog.text
    assert latest(root) == root / "step-00000009"


def test_what_a_resume_went_back_behind_does_not_push_it_out(root: Path) -> None:
    """Had the later two, which read badly when the run was resumed, counted, step 2 would be gone at once."""
    keep = Retention(3)
    for step in (2, 4, 6):
        save(root, snapshot(step), FACTS, keep)
    save(root, snapshot(3), FACTS)
    assert steps(root) == [2, 3, 4, 6]


def test_the_best_and_the_milestones_stay(root: Path) -> None:
    figures = {1: 0.3, 2: 0.9, 3: 0.5, 5: 0.9, 6: 0.8, 8: 0.1}
    for step in range(1, 11):
        facts = {**FACTS, "figures": {"accuracy": figures[step]} if step in figures else {}}
        save(root, snapshot(step), facts, Retention(every=4, best="accuracy"))
    assert steps(root) == [4, 5, 8, 9, 10]
    assert best(root, FACTS["run_id"], "accuracy") == root / "step-00000005"
    assert best(root, FACTS["run_id"], "-accuracy") == root / "step-00000008"
    assert best(root, FACTS["run_id"], "loss") is None
    assert best(root, "another", "accuracy") is None
    flip(root / "step-00000005" / "model.safetensors")
    assert best(root, FACTS["run_id"], "accuracy") == root / "step-00000008"


@pytest.mark.parametrize("stubborn", ["os.rename", "shutil.rmtree"])
def test_an_old_one_that_will_not_go_is_no_reason_to_stop(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stubborn: str
) -> None:
    for step in (1, 2):
        save(root, snapshot(step), FACTS)
    honest = {"os.rename": os.rename, "shutil.rmtree": shutil.rmtree}[stubborn]

    def refuse(path: Path, *more: object, **settings: object) -> None:
        if path.name.endswith("step-00000001"):
            raise PermissionError(13, "Permission denied", str(path))
        honest(path, *more, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(stubborn, refuse)
        assert save(root, snapshot(3), FACTS).name == "step-00000003"
    assert caplog.text.count("an old checkpoint could not be deleted: [Errno 13] Permission denied") == 1
    save(root, snapshot(4), FACTS)
    prepare(root, None)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("blocked", ["a file", "a folder that takes nothing"])
def test_a_place_that_takes_no_checkpoints_is_found_before_the_first(root: Path, blocked: str) -> None:
    if blocked == "a file":
        root.touch()
    else:
        root.symlink_to("/proc/self/task")  # not even root can make a folder there
    with pytest.raises(StorageFailed, match=r"no checkpoint can be written to .*ckpt \(.*make it a folder"):
        prepare(root, None)


def test_a_place_for_checkpoints_is_made_and_left_empty(root: Path) -> None:
    prepare(root, None)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(("share", "told"), [(2.39, True), (2.41, False)])
def test_little_space_is_told_of_before_a_save_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, share: float, told: bool
) -> None:
    newest = save(root, snapshot(1), FACTS)
    size = sum(path.stat().st_size for path in newest.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=share * size))
    for act in (lambda: prepare(root, newest), lambda: save(root, snapshot(1), FACTS)):
        caplog.clear()
        act()
        assert ("free some before a save fails" in caplog.text) == told


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


def test_one_is_found_by_its_name_or_its_identity_also_beside_a_torn_one(root: Path) -> None:
    (root / "step-00000001").mkdir(parents=True)  # torn: nothing in it
    folder = save(root, snapshot(2), FACTS)
    assert checkpoint.named(root, "step-00000002") == checkpoint.named(root, identity(folder)) == folder
    assert checkpoint.named(root, "0123456789abcdef") is None
