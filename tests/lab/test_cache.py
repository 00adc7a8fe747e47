"""Finished tensors on disk: exact, safe against torn files and other processes, and they load nothing."""

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lab.cache import SHARD, TensorCache
from lab.errors import Refused
from lab.runtime import CPU
from lab.text import selection
from lab.text.auto import AutoConfig
from lab.text.frozen import FrozenText, name_of
from tests.encoders import CAPTIONS, make
from tests.faults import ENVIRONMENT, ROOT

Folder = Callable[[str], Path]


def entry(caption: str, dtype: torch.dtype = torch.float16, width: int = 4) -> Tensor:
    """What stands for a caption: a function of it, with as many rows as it has words."""
    generator = torch.Generator().manual_seed(sum(map(ord, caption)))
    return torch.randn(1 + caption.count(" "), width, 2, generator=generator).to(dtype)


def entries(*captions: str) -> dict[str, Tensor]:
    return {caption: entry(caption) for caption in captions}


def same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.dtype == expected.dtype and torch.equal(found, expected)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def frozen(folder: Path, cache: Path | None, **settings: object) -> FrozenText:
    asked = AutoConfig(pretrained=str(folder), context=32, cache=cache and str(cache)).model_copy(update=settings)
    made = selection.build(selection.complete(asked, None, list, allow_download=False), CPU)
    assert isinstance(made, FrozenText)
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_states_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    cache, captions = TensorCache(tmp_path / "c"), ["a", "", "two words", "Öde 😀 \ud800"]
    cache.add({caption: entry(caption, dtype) for caption in captions[:3]})
    cache.flush()
    cache.add({captions[3]: entry(captions[3], dtype)})
    for opened in (cache, TensorCache(tmp_path / "c")):
        assert all(same(opened.get(caption), entry(caption, dtype)) for caption in captions[:3])
        assert opened.get("b") is None
        assert "b" not in opened
    assert same(cache.get(captions[3]), entry(captions[3], dtype))  # one that waits is there, too
    assert captions[3] not in TensorCache(tmp_path / "c")
    cache.flush()
    assert same(TensorCache(tmp_path / "c").get(captions[3]), entry(captions[3], dtype))
    assert captions[3].replace("\ud800", "?") not in cache


def test_captions_that_come_one_by_one_make_few_shards(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for number in range(2 * SHARD):
        cache.add(entries(f"caption {number}"))
    cache.flush()
    assert len(shards(tmp_path)) <= 24
    assert len(TensorCache(tmp_path)) == 2 * SHARD


def test_several_processes_write_at_once_and_all_of_it_is_there(tmp_path: Path) -> None:
    children = []
    for writer in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                cache = TensorCache(tmp_path)
                for number in range(writer * 40, writer * 40 + 100):  # some captions are written by two
                    cache.add(entries(f"caption {number}"))
                    cache.flush()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    cache = TensorCache(tmp_path)
    assert all(same(cache.get(f"caption {number}"), entry(f"caption {number}")) for number in range(180))
    assert len(cache) == 180


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def renamed(path: Path) -> None:
    path.rename(path.with_name("0" * 64 + path.suffix))


@pytest.mark.parametrize("harm", [torn, flipped, empty, renamed])
def test_a_spoilt_shard_is_named_and_its_captions_are_encoded_again(
    encoder_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    folder, cache = encoder_folder("bert"), tmp_path / "cache"
    one = frozen(folder, cache)
    assert one.encodings.fill(CAPTIONS[:2]) == 2
    assert one.encodings.fill(CAPTIONS[2:]) == 3
    expected, written = one.prepare(CAPTIONS), shards(cache)
    harm(written[0])
    (spoilt,) = {*shards(cache)} - {written[1]}
    other = frozen(folder, cache)
    found = other.prepare(CAPTIONS)
    assert f"{spoilt} is not what was written" in caplog.text
    assert all(map(torch.equal, found, expected))
    assert not spoilt.exists()
    other.encodings.fill(CAPTIONS)
    assert shards(cache) != []
    assert frozen(folder, cache).encodings.fill(CAPTIONS) == 0


def test_a_shard_of_an_earlier_version_is_removed_and_what_it_held_computed_again(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add(entries("a", "b c"))
    cache.flush()
    (path,) = shards(tmp_path)
    tensors = load_file(path)
    data = save({"tokens" if name == "rows" else name: value for name, value in tensors.items()})
    path.unlink()
    (tmp_path / f"{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    assert len(TensorCache(tmp_path)) == 0
    assert shards(tmp_path) == []


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.flag,)


@pytest.mark.parametrize("name", ["states.npy", "states.pkl", "0" * 64 + ".pt"])
def test_a_file_that_is_no_shard_is_refused_and_not_run(encoder_folder: Folder, tmp_path: Path, name: str) -> None:
    encoder, flag = frozen(encoder_folder("bert"), tmp_path / "cache"), tmp_path / "flag"
    folder = tmp_path / "cache" / name_of(encoder.encodings.config)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(pickle.dumps(Malicious(flag)))
    with pytest.raises(Refused, match=f"{name} is no shard of a cache and is not read: delete it"):
        encoder.prepare(["a red circle"])
    assert not flag.exists()


def test_a_pickle_with_the_name_of_a_shard_is_removed_and_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(Malicious(tmp_path / "flag"))
    path = tmp_path / "c" / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    path.parent.mkdir()
    path.write_bytes(data)
    assert len(TensorCache(tmp_path / "c")) == 0
    assert not path.exists()
    assert not (tmp_path / "flag").exists()


def test_reading_one_caption_takes_no_memory_for_the_others(tmp_path: Path) -> None:
    def held() -> int:
        """Bytes of this process that are not shared with a file."""
        size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(size.split()[1]) * 1024

    large = {f"caption {n}": torch.full((1000, 64), n / 64.0) for n in range(256)}
    cache = TensorCache(tmp_path)
    cache.add(large)
    cache.flush()
    assert shards(tmp_path)[0].stat().st_size > 6e7
    del cache, large
    before = held()
    cache = TensorCache(tmp_path)
    found = cache.get("caption 77")
    assert found is not None
    assert (found == 77 / 64.0).all()
    assert held() - before < 8e6


def test_with_and_without_a_cache_the_states_are_the_same_bits(encoder_folder: Folder, tmp_path: Path) -> None:
    folder, cache = encoder_folder("bert"), tmp_path / "cache"
    plain, writing = frozen(folder, None), frozen(folder, cache)
    expected = plain.prepare(CAPTIONS)
    assert all(map(torch.equal, writing.prepare(CAPTIONS[:3]), (part[:3] for part in expected)))
    assert all(map(torch.equal, writing.prepare(CAPTIONS), expected))
    writing.encodings.fill([])  # writes what waits
    reading = frozen(folder, cache)
    assert all(map(torch.equal, reading.prepare(CAPTIONS), expected))
    assert "_encoder" not in vars(reading.encodings)


def test_filling_encodes_each_caption_once_and_goes_on_where_it_was_stopped(
    encoder_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache, captions = encoder_folder("bert"), tmp_path / "cache", [f"a {n} b" for n in range(150)]
    expected = frozen(folder, None).prepare(captions)
    monkeypatch.setattr("lab.text.frozen.SHARD", 64)
    first, encoded = frozen(folder, cache), first_calls(monkeypatch, limit=2)
    with pytest.raises(KeyboardInterrupt):
        first.encodings.fill(captions * 3)
    assert encoded == [64, 64]
    second = frozen(folder, cache)
    assert second.encodings.fill(captions) == 150 - 128
    assert all(map(torch.equal, frozen(folder, cache).prepare(captions), expected))
    assert frozen(folder, cache).encodings.fill(reversed(captions)) == 0


def first_calls(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Let the encoding of captions be interrupted once, after so many calls; give how many captions each had."""
    from lab.text.frozen import Encodings

    sizes: list[int] = []
    honest = Encodings._encode

    def encode(self: Encodings, captions: list[str]) -> object:
        if len(sizes) == limit:
            monkeypatch.undo()
            raise KeyboardInterrupt
        sizes.append(len(captions))
        return honest(self, captions)

    monkeypatch.setattr(Encodings, "_encode", encode)
    return sizes


def test_other_weights_in_the_same_folder_find_nothing_of_the_former(tmp_path: Path) -> None:
    folder, cache = make("decoder", tmp_path / "model"), tmp_path / "cache"
    one = frozen(folder, cache)
    one.encodings.fill(CAPTIONS)
    make("decoder", folder, seed=1)
    other = frozen(folder, cache)
    assert other.encodings.fill(CAPTIONS) == len(CAPTIONS)
    assert not torch.equal(other.prepare(CAPTIONS).tokens, one.prepare(CAPTIONS).tokens)
    assert len(list(cache.glob("*/*.safetensors"))) == 2


PROBE = """
import sys
from lab.text import selection
from lab.text.auto import AutoConfig
from lab.runtime import CPU
folder, cache, *captions = sys.argv[1:]
config = selection.complete(AutoConfig(pretrained=folder, context=32, cache=cache), None, list, False)
encoder = selection.build(config, CPU)
states = encoder(encoder.prepare(captions))
print(states.tokens.shape[0], "transformers" in sys.modules, "open_clip" in sys.modules)
encoder.prepare(["something new"])
print("transformers" in sys.modules)
"""


def test_a_batch_that_is_all_in_the_cache_loads_no_library_and_no_encoder(
    encoder_folder: Folder, tmp_path: Path
) -> None:
    folder, cache = encoder_folder("bert"), tmp_path / "cache"
    frozen(folder, cache).encodings.fill(CAPTIONS)
    command = [sys.executable, "-c", PROBE, str(folder), str(cache), *CAPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["5 False False", "True"]
