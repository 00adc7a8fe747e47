"""The emoji sets: made from tarballs of npm, exactly as they were published, whole or not at all."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab import storage
from lab.config import parse
from lab.data import emoji
from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.errors import Refused, StorageFailed
from scripts.prepare import main
from tests.faults import Scripts
from tests.lab.data.test_pictures import encoded, plain

FOX, EYE, FLAG, DOG, MOON = "1F98A", "1F441-FE0F-200D-1F5E8-FE0F", "1F1EA-1F1EC", "1F415", "1F315"
KEYWORDS = {
    "🦊": ["fox", "animal", "Swiper", "red_animal", *"abcdefgh"],
    "👁️\u200d🗨️": ["info"],
    "👁\u200d🗨": ["another"],
    "🐕": ["dog"],
}
CATALOGUE = [
    {"unified": code, "name": name, "category": category, "subcategory": "some"}
    for code, name, category in (
        (FOX, "FOX", "Animals & Nature"),
        (FLAG, "Egypt Flag", "Flags"),
        (MOON, "FULL MOON", "Travel & Places"),
        (EYE, "EYE IN SPEECH BUBBLE", "Smileys & Emotion"),
        (DOG, "Dog", "Animals & Nature"),
    )
]
LINES = [
    ("1f98a", ["fox", "fox: animal, Swiper, red animal, a, b, c, d, e"]),
    ("1f441-fe0f-200d-1f5e8-fe0f", ["eye in speech bubble", "eye in speech bubble: info"]),
    ("1f415", ["dog"]),
]


def tarball(path: Path, content: Mapping[str, bytes], links: Mapping[str, str] = {}) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


def picture(code: str, form: str = "PNG") -> bytes:
    return encoded(plain((int(code[-2:], 16), 0, 0)), form)


@pytest.fixture
def tarballs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three packages with five emoji, three of which are wanted and pictured; and things that nobody asked for."""
    folder = tmp_path / "tarballs"
    folder.mkdir()
    codes = [code.lower() for code in (DOG, EYE, FLAG, FOX)]
    google = {f"package/img/google/64/{code}.png": picture(code) for code in codes}
    fluent = {f"package/assets/{code}.webp": picture(code, "WEBP") for code in (*codes, "1f441-200d-1f5e8")}
    stray = {"../out.png": b"x", "/1f98a.png": b"x", "package/img/google/64/../1f98a.png": b"x"}
    catalogue = {"package/emoji.json": json.dumps(CATALOGUE).encode(), "package/img/google/sheets/64.png": b"x"}
    links = {"package/img/google/64/1f315.png": "/etc/passwd"}
    tarball(folder / emoji.file_of(emoji.GOOGLE), {**google, **catalogue, **stray}, links)
    tarball(folder / emoji.file_of(emoji.FLUENT), fluent)
    words = {"package/dist/emoji-en-US.json": json.dumps(KEYWORDS).encode()}
    tarball(folder / emoji.file_of(emoji.KEYWORDS), words)
    hashes = {spec: hashlib.sha256((folder / emoji.file_of(spec)).read_bytes()).hexdigest() for spec in emoji.SHA256}
    monkeypatch.setattr(emoji, "SHA256", hashes)
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def test_what_is_pictured_and_no_flag_is_there_with_a_short_and_a_long_caption(tmp_path: Path, tarballs: Path) -> None:
    assert emoji.build(tmp_path / "data", tarballs) == [tmp_path / "data" / name for name in ("emoji64", "emoji256")]
    for name, suffix, eye in (("emoji64", "png", LINES[1][0]), ("emoji256", "webp", "1f441-200d-1f5e8")):
        folder = tmp_path / "data" / name
        stems = [LINES[0][0], eye, LINES[2][0]]
        assert [(line["file_name"], line["captions"]) for line in lines(folder)] == [
            (f"images/{stem}.{suffix}", captions) for stem, (_, captions) in zip(stems, LINES, strict=True)
        ]
        assert lines(folder)[0]["category"] == "Animals & Nature"
        assert {path.name for path in folder.rglob("*")} == {
            *("images", "metadata.jsonl"),
            *(f"{stem}.{suffix}" for stem in stems),
        }
        assert (folder / "images" / f"1f98a.{suffix}").read_bytes() == picture(FOX, suffix)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "tarballs"}


def test_a_run_reads_it(tmp_path: Path, tarballs: Path) -> None:
    emoji.build(tmp_path / "data", tarballs)
    given = {"path": str(tmp_path / "data" / "emoji256"), "cache": str(tmp_path / "cache"), "split": {"heldout": 0.0}}
    config = parse({**given, "captions": {"positions": ["short", "long"], "kinds": {"long": 1.0}}}, Folder)
    source = Finite(config, open_index(config))
    assert source.index.facts["bad"] == 0
    assert set(source.captions()) == {captions[1] for _, captions in LINES[:2]}


def test_a_repeat_does_nothing_and_asks_for_no_tarball(
    tmp_path: Path, tarballs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["emoji", str(tmp_path / "data"), "--from", str(tarballs)]
    assert main(command) == 0
    before = everything(tmp_path / "data")
    for path in tarballs.iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert everything(tmp_path / "data") == before
    assert list(tarballs.iterdir()) == []


def test_a_set_that_is_there_is_left_alone_and_the_other_is_made(tmp_path: Path, tarballs: Path) -> None:
    mine = tmp_path / "data" / "emoji64" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert emoji.build(tmp_path / "data", tarballs) == [tmp_path / "data" / "emoji256"]
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize("spec", list(emoji.SHA256))
def test_a_tarball_that_is_cut_or_another_is_refused_and_nothing_is_made(
    tmp_path: Path, tarballs: Path, spec: str
) -> None:
    path = tarballs / emoji.file_of(spec)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Refused, match=rf"{path.name}: is not {spec} as it was published.*delete it"):
        emoji.build(tmp_path / "data", tarballs)
    assert not (tmp_path / "data" / ("emoji256" if spec == emoji.FLUENT else "emoji64")).exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, tarballs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        assert not (tmp_path / "data" / "emoji64").exists()
        if path.name == "metadata.jsonl":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(StorageFailed, match="emoji64: cannot be written: No space left"):
        emoji.build(tmp_path / "data", tarballs)
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()


NPM = """#!{python}
import shutil, sys
*_, flag, folder, spec = sys.argv
assert sys.argv[1:3] == ["pack", "--ignore-scripts"] and flag == "--pack-destination"
open({calls!r}, "a").write(spec + "\\n")
{act}
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program in the place of npm, or none."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def write(act: str) -> Path:
        calls = tmp_path / "calls"
        program = tmp_path / "bin" / "npm"
        program.write_text(NPM.format(python=sys.executable, act=act, calls=str(calls)))
        program.chmod(0o755)
        return calls

    return write


def test_npm_fetches_what_is_missing_once(tmp_path: Path, tarballs: Path, npm: Any) -> None:
    data = tmp_path / "data"
    data.mkdir()
    here = data / emoji.file_of(emoji.FLUENT)
    here.write_bytes((tarballs / here.name).read_bytes())
    names = {spec: str(tarballs / emoji.file_of(spec)) for spec in emoji.SHA256}
    calls = npm(f"shutil.copy({names}[spec], folder)")
    assert len(emoji.build(data, data)) == 2
    assert calls.read_text().split() == [emoji.GOOGLE, emoji.KEYWORDS]
    kept = {"emoji64", "emoji256", *(Path(name).name for name in names.values())}
    assert {path.name for path in data.iterdir()} == kept
    emoji.build(data, data)
    assert len(calls.read_text().split()) == 2


def test_npm_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, npm: Any) -> None:
    npm("print('npm error code ENOTFOUND\\nnpm error network', file=sys.stderr); sys.exit(1)")
    with pytest.raises(Refused, match=r"failed \(npm error code ENOTFOUND npm error network\): .*put the \.tgz"):
        emoji.build(tmp_path / "data", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.usefixtures("npm")
def test_without_npm_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=r"not installed: install Node\.js, or .*npm pack emoji-datasource-google@16\.0\.0"
    ):
        emoji.build(tmp_path / "data", tmp_path / "data")


def test_the_script_knows_what_was_published(script: Scripts, tmp_path: Path, tarballs: Path) -> None:
    done = script("prepare", "emoji", tmp_path / "data", "--from", tarballs)
    assert (done.code, done.out) == (2, "")
    assert "as it was published" in done.err
    assert script("prepare", "emoji", tmp_path / "data", "--from", tmp_path / "none").code == 2
    done = script("prepare", "emoji", "--help")
    assert (done.code, done.out.count("python scripts/prepare.py emoji")) == (0, 2)
