"""Strict typed configuration: YAML presets, dotted overrides, one clear line for every mistake.

A configuration is a tree of frozen pydantic models, each written beside the class that consumes it. A preset is a
YAML file whose scalars are read as YAML 1.2 does (``no``, ``on`` and ``yes`` are strings, ``1e-4`` is a number) and
which may inherit with ``base: other.yaml``, relative to itself. Later values win: base, preset, overrides in the
order given. Mappings are merged key by key and lists replaced; a ``kind`` that differs from the one inherited
replaces its whole node, so no key of the former kind lingers. ``${`` and ``???`` are literal. Field types are strict,
but an integer may stand for a float.

What a run does with its configuration (identity, resume, run directories) does not belong here. Nothing heavy is
imported: a misspelt key is reported before torch would have been loaded.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lab.errors import Refused
from lab.explanation import explain, nearest
from lab.yaml12 import Dumper, read

Tree = dict[str, Any]
T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """Base of every configuration class: frozen, no unknown keys, strict types.

    A string under a field is its documentation and appears in the JSON schema. A union of configurations is
    discriminated by a field ``kind: Literal["name"] = "name"``. The key ``base`` is taken: it inherits from another
    file. Building one in Python raises pydantic's ``ValidationError``; ``load`` and ``parse`` raise ``Refused``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _documentation(cls).items():
            if name in properties:  # or it is a constant of the class
                properties[name].setdefault("description", text)
        return schema


def load(path: str | Path, overrides: Sequence[str], schema: type[T]) -> T:
    """Read a preset, apply overrides and validate.

    Args:
        path: a YAML file; its ``base`` is another file, relative to this one.
        overrides: ``"dotted.key=value"`` each, the value written as in YAML (``train.steps=20``, ``"sizes=[7, 14]"``).
        schema: the class to build.

    Returns:
        The validated configuration.

    Raises:
        Refused: a missing or broken file, a malformed override, or a value that ``schema`` does not accept; one line
            with the dotted path, the value, the remedy and the nearest known key.
    """
    tree = merge(_read(Path(path), ()), _overrides(overrides))
    return parse(tree, schema, origin=str(path))


def parse(tree: Mapping[str, Any], schema: type[T], origin: str = "configuration") -> T:
    """Validate a plain mapping, as read from YAML or JSON, against ``schema``.

    Args:
        tree: nested mappings, lists and scalars; lists are accepted for tuples.
        schema: the class to build.
        origin: what to call the mapping in an error, usually its file.

    Raises:
        Refused: one line that says where, what and how to mend it.
    """
    try:
        return schema.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise Refused(f"{origin}: {explain(error, tree, schema)}") from None


def dump(config: Config) -> str:
    """Write a configuration as YAML with every value resolved; ``load`` reads exactly the same configuration back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, width=120)


def diff(old: Config, new: Config) -> list[str]:
    """List what differs, one ``"dotted.key: old -> new"`` line per value, in the order of the fields."""
    before, after = (dict(_leaves(config.model_dump(mode="json"))) for config in (old, new))
    keys = [*before, *(key for key in after if key not in before)]

    def shown(leaves: Mapping[str, Any], key: str) -> str:
        return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "(absent)"

    lines = ((key, shown(before, key), shown(after, key)) for key in keys)
    return [f"{key}: {was} -> {now}" for key, was, now in lines if was != now]


def json_schema(schema: type[Config]) -> Tree:
    """Describe a configuration class as a JSON schema, for editors and for documentation."""
    return schema.model_json_schema()


def _documentation(schema: type[Config]) -> dict[str, str]:
    """Read what the docstrings of a class, and of those that it inherits from, say of their attributes."""
    found: dict[str, str] = {}
    for each in reversed([each for each in schema.__mro__ if issubclass(each, Config)]):
        attributes = inspect.cleandoc(each.__doc__ or "").partition("\nAttributes:\n")[2]
        for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def merge(base: Tree, over: Tree) -> Tree:
    """Lay one tree over another: mappings merge, lists are replaced, another ``kind`` replaces its node."""
    if not over:
        return base
    return _plain(OmegaConf.merge(_branches(_without_stale_kinds(base, over)), _branches(over)))


class _Leaf:
    """A value that OmegaConf carries without looking into it: it would interpret ``${`` and ``???``."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _branches(tree: Tree) -> DictConfig:
    branches: DictConfig = OmegaConf.create(_wrapped(tree), flags={"allow_objects": True})
    return branches


def _plain(tree: Any) -> Tree:
    plain: Tree = _unwrapped(OmegaConf.to_container(tree))
    return plain


def _wrapped(node: Any) -> Any:
    return {key: _wrapped(value) for key, value in node.items()} if isinstance(node, dict) else _Leaf(node)


def _unwrapped(node: Any) -> Any:
    return {key: _unwrapped(value) for key, value in node.items()} if isinstance(node, dict) else node.value


def _without_stale_kinds(base: Tree, over: Tree) -> Tree:
    """Drop from ``base`` the nodes that ``over`` replaces by naming another kind."""
    if "kind" in base and "kind" in over and base["kind"] != over["kind"]:
        return {}
    both_mappings = {key for key in base if isinstance(base[key], dict) and isinstance(over.get(key), dict)}
    return {
        key: _without_stale_kinds(value, over[key]) if key in both_mappings else value for key, value in base.items()
    }


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _read(path: Path, heirs: tuple[Path, ...]) -> Tree:
    """Read a file and what it inherits from; ``heirs`` are the files that led here."""
    if path.resolve() in heirs:
        raise Refused(f"{heirs[-1]}: base: {path} inherits from itself; remove one of the two base keys")
    tree = _mapping(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise Refused(f"{path}: base: must be the name of one YAML file, got {base!r}")
    return merge(_read(path.parent / base, (*heirs, path.resolve())), tree)


def _mapping(path: Path) -> Tree:
    try:
        tree = read(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        presets = sorted(str(other) for other in path.parent.glob("*.yaml"))
        raise Refused(f"{path}: no such configuration file{nearest(str(path), presets)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise Refused(f"{path}: is not YAML: {_problem(error)}") from None
    if not isinstance(tree, dict | None):
        raise Refused(f"{path}: must hold a mapping of keys to values, holds a {type(tree).__name__}")
    return tree or {}


def _overrides(items: Sequence[str]) -> Tree:
    """Collect the overrides into one tree first, so that their order does not matter to a change of kind."""
    tree = _branches({})
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise Refused(f"override {item!r}: must read dotted.key=value, for instance train.steps=20")
        try:
            value = read(text)
        except yaml.YAMLError as error:
            raise Refused(f"override {item!r}: the value is not YAML ({_problem(error)}); quote it") from None
        OmegaConf.update(tree, key, _wrapped(value))
    return _plain(tree)


def _problem(error: yaml.YAMLError) -> str:
    """What PyYAML found and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
