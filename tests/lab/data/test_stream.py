"""Shards from a web server are as good as local ones: the same samples, in an order that any slot finds."""

import hashlib
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch

from lab.config import parse
from lab.data import fetch as fetching
from lab.data.loader import Loader
from lab.data.mixture import MixtureConfig
from lab.data.source import Sample
from lab.data.sources import source
from lab.data.stream import Shard, Stream, StreamConfig, listed
from lab.errors import BadData, Refused
from tests.faults import TINY, Scripts, signal_at
from tests.lab.data import test_shards
from tests.lab.data.test_shards import PER_SHARD
from tests.lab.training.test_resume import differences

NUM = 4 * PER_SHARD


class Web:
    """The files of a folder on 127.0.0.1.

    Attributes:
        url: of the folder.
        asked: how often for each file.
        cut: bytes after which the answer for a file ends, the next so many times: {name: (bytes, times)}.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.cut: dict[str, tuple[int, int]] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self, self.path.partition("?")[0][1:])

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        self.asked[name] += 1
        if not (self.folder / name).is_file():
            handler.send_error(404)
            return
        data = (self.folder / name).read_bytes()
        size, times = self.cut.get(name, (len(data), 1))
        self.cut[name] = (size if times > 1 else len(data), times - 1)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:size])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """200 pairs in shard-0.tar to shard-3.tar."""
    made = Web(test_shards.pairs(tmp_path / "web"))
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def config(web: Web, lines: list[Any] | None = None, **settings: Any) -> StreamConfig:
    """A stream; by default of a list that tells all about the four shards."""
    path = web.folder.parent / f"{hashlib.sha256(repr(lines).encode()).hexdigest()[:8]}.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines or whole(web)))
    return parse({"path": str(path), "size": 12, "heldout": 0.0, **settings}, StreamConfig)


def whole(web: Web) -> list[dict[str, Any]]:
    tars = sorted(web.folder.glob("*.tar"))
    hashes = [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]
    return [
        {"url": f"{web.url}/{tar.name}", "num": PER_SHARD, "sha256": digest}
        for tar, digest in zip(tars, hashes, strict=True)
    ]


def pattern(web: Web) -> list[Any]:
    return [{"url": f"{web.url}/shard-{{0..3}}.tar"}]


def forget(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")


def assert_same(one: Sample, other: Sample) -> None:
    assert torch.equal(one.image, other.image)
    assert (one.id, one.caption, one.frame, one.faults) == (other.id, other.caption, other.frame, other.faults)


@pytest.mark.parametrize("mixed", [1, 3, 9])
def test_an_epoch_gives_every_sample_of_the_local_shards_once(tmp_path: Path, web: Web, mixed: int) -> None:
    local = {one.id: one for one in (test_shards.opened(web.folder).sample(0, slot) for slot in range(NUM))}
    stream = Stream(config(web, mixed=mixed))
    assert stream.num == NUM
    for epoch in (0, 5):
        found = {one.id: one for one in (stream.sample(0, epoch * NUM + slot) for slot in range(NUM))}
        assert found.keys() == local.keys()
        for name, one in found.items():
            assert_same(one, local[name])


def test_so_many_shards_at_a_time_are_shuffled_together(web: Web) -> None:
    stream = Stream(config(web, mixed=2))
    places = np.array([[stream.place(0, slot) for slot in range(NUM * epoch, NUM * (epoch + 1))] for epoch in range(6)])
    groups = [tuple(frozenset(half.tolist()) for half in np.split(epoch[:, 0], 2)) for epoch in places]
    assert all(len(first) == len(second) == 2 and not first & second for first, second in groups)
    assert len(set(groups)) > 2
    changes = (np.diff(places[:, : 2 * PER_SHARD, 0]) != 0).sum(axis=1)
    assert (changes > PER_SHARD / 2).all()  # not one shard after the other
    assert not np.array_equal(places[0, :, 1], places[1, :, 1])
    assert [stream.place(1, slot) for slot in range(9)] != [stream.place(0, slot) for slot in range(9)]


def test_a_run_that_goes_on_fetches_only_the_shards_where_it_stands(tmp_path: Path, web: Web) -> None:
    made = config(web, mixed=1, picture={"crop": "random", "flip": 0.5})
    start, num = NUM + 2 * PER_SHARD + 20, 40  # in the third shard of the second epoch, and the fourth
    straight = [Stream(made).sample(7, slot) for slot in range(start, start + num)]
    forget(tmp_path)
    web.asked.clear()
    stream = Stream(made)
    for slot, before in enumerate(straight, start=start):
        assert_same(stream.sample(7, slot), before)
    needed = {stream.place(7, slot)[0] for slot in range(start, start + num)}
    assert web.asked == {f"shard-{number}.tar": 1 for number in needed}
    assert len(needed) == 2


def test_any_number_of_workers_gives_the_same_batches_and_fetches_each_shard_once(tmp_path: Path, web: Web) -> None:
    def taken(workers: int) -> list[Any]:
        batches = Loader(Stream(config(web, mixed=2)), seed=3, workers=workers).batches(150, [16])
        found = list(itertools.islice(batches, 8))
        batches.close()
        return found

    alone = taken(0)
    forget(tmp_path)
    web.asked.clear()
    for one, other in zip(alone, taken(2), strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.ids, one.captions, one.slots) == (other.ids, other.captions, other.slots)
    assert set(web.asked.values()) == {1}


def test_bad_samples_are_replaced_by_others_of_their_shard(tmp_path: Path, web: Web) -> None:
    test_shards.pairs(web.folder, test_shards.broken())
    stream = Stream(config(web))
    samples = [stream.sample(1, slot) for slot in range(NUM)]
    faults = {fault.id: sample.id for sample in samples for fault in sample.faults}
    assert len(faults) == 10
    assert all(bad.partition("/")[0] == stand_in.partition("/")[0] for bad, stand_in in faults.items())
    assert len(set(faults.values())) > 4  # not one for each shard
    assert len([sample for sample in samples if not sample.faults]) == NUM - 10


def test_what_the_list_does_not_say_is_found_out_once(tmp_path: Path, web: Web) -> None:
    first = Stream(config(web, pattern(web)))
    assert (first.num, sum(web.asked.values())) == (NUM, 4)
    second = Stream(config(web, pattern(web)))
    assert sum(web.asked.values()) == 4
    assert second.fingerprint == first.fingerprint == Stream(config(web)).fingerprint  # as of the list that tells all
    assert second.fingerprint != Stream(config(web, whole(web)[:3])).fingerprint
    assert second.fingerprint != Stream(config(web, mixed=2)).fingerprint


def test_a_shard_that_was_changed_since_it_was_counted_is_named(tmp_path: Path, web: Web) -> None:
    Stream(config(web, pattern(web)))
    for tar in (tmp_path / "cache").rglob("shard-*.tar"):
        tar.unlink()
    test_shards.write(web.folder / "shard-2.tar", {"0.png": test_shards.picture(0), "0.txt": b"zero"})
    stream = Stream(config(web, pattern(web)))
    with pytest.raises(BadData, match=r"shard-2.tar: cannot be fetched: its SHA-256 is .*; if the shards were changed"):
        list(stream.captions())


def test_a_download_that_is_cut_short_is_tried_again(web: Web) -> None:
    web.cut["shard-1.tar"] = (1000, 3)
    assert len(list(Stream(config(web)).captions())) == NUM
    assert web.asked == {"shard-0.tar": 1, "shard-1.tar": 4, "shard-2.tar": 1, "shard-3.tar": 1}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda web: web.cut.update({"shard-1.tar": (1000, 99)}), r"cut short: 1,000 of \d\d\d,\d\d\d bytes came"),
        (lambda web: (web.folder / "shard-1.tar").unlink(), "HTTP Error 404: Not Found"),
        (lambda web: os.truncate(web.folder / "shard-1.tar", 2000), r"its SHA-256 is \w{64}, not \w{64}"),
    ],
)
def test_a_shard_that_does_not_come_is_named_after_four_tries(tmp_path: Path, web: Web, spoil: Any, words: str) -> None:
    stream = Stream(config(web))
    spoil(web)
    with pytest.raises(BadData, match=rf"{web.url}/shard-1.tar: cannot be fetched: {words} \(4 tries\)"):
        list(stream.captions())
    assert web.asked["shard-1.tar"] == 4
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith((".shard", "shard-1"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num": 51}, r"shard-0.tar: has 50 samples, but .*\.jsonl says 51: correct it"),
        ({"num": 0}, "has 50 samples, but .* says 0"),
    ],
)
def test_a_shard_with_another_number_of_samples_is_named(web: Web, change: Any, words: str) -> None:
    lines = whole(web)
    lines[0] |= change
    with pytest.raises(BadData, match=words):
        Stream(config(web, lines))._store.index(0)


def test_a_server_that_does_not_say_the_length_cannot_cut_a_shard_unseen(web: Web) -> None:
    os.truncate(web.folder / "shard-1.tar", 2**15)
    with pytest.raises(BadData, match=r"shard-1.tar: is cut short or damaged behind \d+ samples"):
        Stream(config(web, pattern(web)))


def test_a_query_which_may_hold_a_key_is_not_shown(web: Web) -> None:
    with pytest.raises(BadData) as caught:
        Stream(config(web, [{"url": f"{web.url}/gone.tar?key=secret"}]))
    assert "gone.tar: cannot be fetched" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_shards_that_nobody_reads_make_room_and_come_again(tmp_path: Path, web: Web) -> None:
    roomy = [Stream(config(web, mixed=1)).sample(0, slot) for slot in range(2 * NUM)]
    forget(tmp_path)
    narrow = Stream(config(web, mixed=1, keep_gb=0.0))
    other = Stream(config(web, mixed=1, keep_gb=0.0))
    held = other.place(5, 0)[0]
    other.sample(5, 0)
    for slot, before in enumerate(roomy):
        assert_same(narrow.sample(0, slot), before)
        here = {tar.name for tar in (tmp_path / "cache").rglob("shard-*.tar")}
        assert f"shard-{held}.tar" in here  # the other one may be reading it
        assert len(here) <= 3
    assert max(web.asked.values()) > 1


def test_what_a_killed_process_left_is_no_shard(tmp_path: Path, web: Web) -> None:
    made = config(web)
    Stream(made).sample(0, 0)
    for tar in (tmp_path / "cache").rglob("shard-*.tar"):
        tar.rename(tar.with_name(f".{tar.name}.0123abcd.tmp"))
    assert len(list(Stream(made).captions())) == NUM
    assert not list((tmp_path / "cache").rglob(".shard-*"))


def test_whole_shards_are_held_out(web: Web) -> None:
    train, heldout = (Stream(config(web, heldout=0.6), split) for split in ("train", "heldout"))
    of_train, of_heldout = ({one.place(0, slot)[0] for slot in range(one.num)} for one in (train, heldout))
    assert of_train | of_heldout == set(range(4))
    assert not of_train & of_heldout
    assert train.num + heldout.num == NUM
    with pytest.raises(Refused, match=r"data\.heldout=0\.0 leaves no sample of the 4 shards of .* on the heldout side"):
        Stream(config(web), "heldout")


def test_commands_run_only_where_they_are_allowed_and_by_no_shell(tmp_path: Path, web: Web) -> None:
    tar, flag = web.folder / "shard-0.tar", tmp_path / "flag"
    lines = [{"url": f"pipe:cat '{tar}'"}]
    with pytest.raises(Refused, match=r"pipe:cat .*: is a command, .* set data\.allow_pipe=true"):
        Stream(config(web, lines))
    stream = Stream(config(web, lines, allow_pipe=True))
    assert {stream.sample(0, slot).id for slot in range(PER_SHARD)} == {f"000000.tar/{k:03}" for k in range(PER_SHARD)}
    for command, words in {
        f"cat {tar} ; touch {flag}": "the command ended with 1",
        f"cat {tar} $(touch {flag})": "the command ended with 1",
        "no-such-command x": "No such file or directory",
        "cat 'x": "No closing quotation",
    }.items():
        with pytest.raises(BadData, match=f"cannot be fetched: .*{words}"):
            Stream(config(web, [{"url": f"pipe:{command}"}], allow_pipe=True))
    assert not flag.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; write a line"),
        ("{", r"line 1: is no JSON"),
        ('{"url": "http://h/a.tar"}\n\n{"num": 3}', r"line 3: .*url"),
        ('{"url": "http://h/a.tar", "nums": 3}', r"line 1: .*nums"),
        ('{"url": "http://h/a.tar", "sha256": "abc"}', r"line 1: .*sha256"),
        ('{"url": "http://h/a-{0..9}.tar", "num": 3}', "line 1: num and sha256 are those of one shard, not of a range"),
        ('{"url": "s3://h/a.tar"}', r"s3://h/a\.tar: is no address that is known here.*pipe:aws s3 cp"),
        ('{"url": "file:///etc/passwd"}', "is no address that is known here"),
        ('{"url": "../a.tar"}', "is no address that is known here"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(Refused, match=words):
        listed(StreamConfig(path=str(path)))
    path.unlink()
    with pytest.raises(Refused, match=r"data\.path=.*: no such file; write a list"):
        listed(StreamConfig(path=str(path)))


def test_ranges_are_spelt_out(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"url": "http://h/{0..1}/x-{008..010}.tar"}\n{"url": "http://h/last.tar", "num": 3}')
    urls = [shard.url.removeprefix("http://h/") for shard in listed(StreamConfig(path=str(path)))]
    assert urls == [*(f"{folder}/x-{k:03}.tar" for folder in range(2) for k in (8, 9, 10)), "last.tar"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/b-01.tar", "b-01.tar"),
        ("https://h/b.tar?versionId=3", "b.tar"),
        ("https://h/..%2f..%2fb.tar", "000007.tar"),
        ("https://h/.tar", "000007.tar"),
        ("https://h/x.tar/", "000007.tar"),
        (f"https://h/{'x' * 300}.tar", "000007.tar"),
        ("pipe:aws s3 cp s3://h/b.tar -", "000007.tar"),
    ],
)
def test_a_url_never_becomes_a_path(url: str, name: str) -> None:
    assert Shard(url=url).name(7) == name


def words(web: Web, cache: Path) -> list[str]:
    """Settings of a run on 200 pairs, 100 at a time, from the second of which on the shards are read anew."""
    given = config(web, mixed=2)
    return [
        f"data.{name}={value}"
        for name, value in {"kind": "stream", "path": given.path, "size": 16, "heldout": 0, "cache": cache}.items()
    ]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_that_was_killed_goes_on_bit_for_bit_elsewhere(
    script: Scripts, tmp_path: Path, web: Web, workers: int
) -> None:
    run, more = tmp_path / "cut", f"train.workers={workers}"
    test_shards.pairs(web.folder, test_shards.broken())
    command = ("train", TINY, *words(web, tmp_path / "cache"), more, "train.preview_every=0", "--run")
    assert script(*command, tmp_path / "whole").code == 0
    assert script(*command, run, fault=(signal_at, "loss", 7, SIGKILL)).code == -SIGKILL
    done = script("train", "--resume", run, f"data.cache={tmp_path / 'another'}")
    assert done.code == 0, done.err
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()


def test_the_doctor_looks_at_the_first_samples(script: Scripts, tmp_path: Path, web: Web) -> None:
    test_shards.pairs(web.folder, test_shards.broken())
    done = script("prepare", "doctor", TINY, *words(web, tmp_path / "cache"), "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "| broken | 10 |" in done.out
    assert "Broken: broken image: 3." in done.out


def test_a_stream_may_be_part_of_a_mixture(web: Web) -> None:
    part = config(web, size=16).model_dump(mode="json")
    tree = {
        "size": 16,
        "parts": {"far": part, "shapes": {"kind": "shapes", "size": 16}},
        "weights": {"far": 3, "shapes": 1},
    }
    made = source(parse(tree, MixtureConfig))
    assert sorted({made.sample(0, slot).id.partition("/")[0] for slot in range(8)}) == ["far", "shapes"]
