"""YAML with the scalars of version 1.2 (its core schema) on top of PyYAML, which reads version 1.1.

In 1.1 ``no`` is false, ``1e-4`` a string, ``010`` eight and ``12:30`` seven hundred and fifty. Here none of that
happens; also, keys are always strings and a repeated key is an error. Nothing can be constructed but mappings, lists
and scalars.

Source: YAML 1.2.2, section 10.3.2.
"""

import copy
import math
import re
from functools import lru_cache
from typing import Any

import yaml

_CORE_SCHEMA = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    """A ``yaml.SafeLoader`` that reads scalars as YAML 1.2 does, keys as text, and refuses repeated keys."""

    yaml_implicit_resolvers = {}


def read(text: str) -> Any:
    """Read one document.

    Raises:
        yaml.YAMLError: it is not YAML, or not of what is read here.
    """
    return copy.deepcopy(_parsed(text))


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """A script reads a run's configuration several times, and PyYAML is slow."""
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class Dumper(yaml.SafeDumper):
    """A ``yaml.SafeDumper`` that quotes each string which a reader of YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base) if base != 10 else int(text)


def _float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return math.nan if text == ".nan" else float(text.replace(".inf", "inf"))


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        key = key_node.value
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


Loader.add_constructor("tag:yaml.org,2002:int", _int)
Loader.add_constructor("tag:yaml.org,2002:float", _float)
Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
