"""A checkpoint from anywhere: it is refused or read, but runs nothing, whoever forged its hashes."""

import hashlib
import json
import pickle
import resource
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import Refused
from lab.training import checkpoint
from lab.training.checkpoint import Snapshot, load, save
from tests import golden
from tests.faults import Scripts

STEP = "step-00000003"


def forge(folder: Path) -> None:
    """Write the manifest anew, as anybody can: with the right size and hash of whatever lies there."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest.pop("seal")
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "MANIFEST.json"
    }
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "seal": seal}))


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.flag,)


def test_the_pickle_is_malicious(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "flag")))
    assert (tmp_path / "flag").exists()


@pytest.mark.parametrize("forged", [False, True], ids=["as found", "with its hashes forged"])
@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("weights.pt", None),
        (".metadata", None),  # of torch.distributed.checkpoint, whose reader unpickles it
        ("model.safetensors", None),
        ("ema_0.100.safetensors", None),
        ("optim.safetensors", 0),
        ("state.json", 0),  # protocol 0 is text
    ],
)
def test_a_pickle_is_refused_and_not_run(
    script: Scripts, tmp_path: Path, name: str, protocol: int | None, forged: bool
) -> None:
    run, flag = golden.unpack(tmp_path / "run"), tmp_path / "flag"
    (run / "ckpt" / STEP / name).write_bytes(pickle.dumps({"model": Malicious(flag)}, protocol))
    if forged:
        forge(run / "ckpt" / STEP)
    verifies = checkpoint.defect(run / "ckpt" / STEP) is None
    assert verifies == (forged and name.endswith((".safetensors", ".json")))
    for code, command in (
        (2 if verifies else 65, ("train", "--resume", run)),
        (2, ("sample", run, "a red circle", "--checkpoint", STEP)),
    ):
        done = script(*command)
        assert (done.code, "Traceback" in done.err) == (code, False)
        line = done.err.splitlines()[-1]
        assert name in line
        assert ("a pickle can run code" in line) == (forged or name in ("weights.pt", ".metadata"))
        assert "choose another" in line or "restore one" in line
    assert not flag.exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"step": 3}', "7", "[" * 100_000, "\x00"])
def test_a_state_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path, Snapshot({"model": {"a": torch.zeros(1)}}, {"step": 3, "seen": 3}), {"run_id": "a"})
    (folder / "state.json").write_text(content)
    forge(folder)
    with pytest.raises(Refused, match=r"state\.json does not hold what its name says"):
        load(folder)


GIVEN = {"a": torch.arange(15.0).reshape(3, 5), "b": torch.arange(8.0), "c": torch.arange(4)}
FILE = safetensors.torch.save(GIVEN)
WIDTHS = {"F64": 64, "I64": 64, "C64": 64, "U32": 32, "BF16": 16, "U16": 16, "BOOL": 8, "F8_E5M2": 8, "F4": 4}
LENGTH = struct.unpack("<Q", FILE[:8])[0]
HEADER, BODY = json.loads(FILE[8 : 8 + LENGTH]), FILE[8 + LENGTH :]

sizes = st.sampled_from(
    [-1, 0, 1, 7, 8, 60, 92, 124, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1, 2**64, 1.5, None, "8"]
)
types = st.sampled_from(
    ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "X", "", None, 3]
)


def written(header: Any, length: int | None = None) -> bytes:
    """A file of this header, whose length it tells or lies about."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + BODY


def changed(name: str, key: str, value: Any) -> bytes:
    return written({**HEADER, name: {**HEADER[name], key: value}})


def retold(name: str, dtype: str) -> bytes:
    """The same bytes as a consistent tensor of another type."""
    elements = GIVEN[name].nbytes * 8 // WIDTHS[dtype]
    return written({**HEADER, name: {**HEADER[name], "dtype": dtype, "shape": [elements]}})


def told(content: bytes) -> Any:
    """The header of a file that can be read."""
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def flipped(position: int, byte: int) -> bytes:
    return FILE[:position] + bytes([FILE[position] ^ byte]) + FILE[position + 1 :]


names = st.sampled_from(sorted(GIVEN))
mutations = st.one_of(
    st.builds(written, st.just(HEADER), st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2 * LENGTH))),
    st.builds(written, st.recursive(st.none() | sizes, lambda some: st.lists(some) | st.dictionaries(names, some))),
    st.builds(changed, names, st.just("shape"), st.lists(sizes, max_size=4)),
    st.builds(changed, names, st.just("data_offsets"), st.lists(sizes, max_size=3)),
    st.builds(changed, names, st.just("dtype"), types),
    st.builds(retold, names, st.sampled_from(sorted(WIDTHS))),
    st.builds(flipped, st.integers(0, 8 + LENGTH - 1), st.integers(1, 255)),
    st.integers(0, len(FILE) - 1).map(lambda end: FILE[:end]),
    st.binary(min_size=1, max_size=40).map(lambda more: FILE + more),
)


def test_a_mutated_file_of_tensors_is_refused_or_read(tmp_path: Path) -> None:
    """Without a forged manifest nothing but the file itself is read. With one, a header may be consistent and say
    something else; then the tensors are those bytes and no others."""
    folder = save(tmp_path, Snapshot({"model": GIVEN}, {"step": 3, "seen": 3}), {"run_id": "a"})
    path, manifest = folder / "model.safetensors", (folder / "MANIFEST.json").read_bytes()
    honest, outcomes = path.read_bytes(), Counter[str]()

    @settings(max_examples=300, derandomize=True, deadline=None, database=None)
    @given(mutations)
    def check(content: bytes) -> None:
        (folder / "MANIFEST.json").write_bytes(manifest)
        path.write_bytes(content)
        assert (checkpoint.defect(folder) is None) == (content == honest)
        forge(folder)
        tensors, answer = outcome(folder)
        outcomes[answer] += 1
        assert answer in ("read", "refused for model.safetensors")
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
        if answer == "read" and told(content) == HEADER:
            assert all(torch.equal(tensors[name], tensor) for name, tensor in GIVEN.items())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert min(outcomes["read"], outcomes["refused for model.safetensors"]) > 5


def outcome(folder: Path) -> tuple[Mapping[str, torch.Tensor], str]:
    """The tensors of a model and "read", or none and for which file it is refused."""
    try:
        return load(folder).tensors["model"], "read"
    except Refused as error:
        return {}, "refused for " + str(error).split("cannot be used: ")[1].split()[0]
