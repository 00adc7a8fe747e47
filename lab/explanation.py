"""Turn pydantic's errors into one line to act on: where, what was given, the remedy, the nearest known key."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]


def explain(error: ValidationError, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Describe the first mistake in one line, and count the others.

    Args:
        error: what pydantic raised.
        tree: the input, nested mappings and lists.
        schema: the class that was asked for.

    Returns:
        ``"train.stpes: unknown key (given 20); did you mean train.steps?"``
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path(detail, tree), []).append(detail)
    # A misspelt key leaves its true name missing: the unknown key is the cause and comes first.
    paths = sorted(by_path, key=lambda path: by_path[path][0]["type"] != "extra_forbidden")
    first = paths[0]
    line = f"{_dotted(first)}: {_cause(by_path[first], first, tree, schema)}"
    more = len(paths) - 1
    return f"{line} (and {more} more {'mistake' if more == 1 else 'mistakes'})" if more else line


def nearest(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """``"; did you mean X?"`` for the known word closest to ``word``, or nothing when none is close."""
    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]}?" if found else ""


def _cause(details: Sequence[ErrorDetails], path: Path, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """What is wrong at one path; a union of types contributes one detail per member."""
    detail = details[0]
    context = detail.get("ctx", {})
    given = _shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key (given {given}){_known_key(path, tree, schema)}"
        case "missing":
            return "is missing; give it a value"
        case "union_tag_not_found":
            return f"has no 'kind'; name one of {_choices(path, tree, schema)} (given {given})"
        case "union_tag_invalid":
            tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
            return f"unknown kind {context['tag']!r}; choose one of {', '.join(tags)}{nearest(context['tag'], tags)}"
        case "value_error" | "assertion_error":
            message = detail["msg"].split(", ", 1)[1]
            return f"{message} (given {given})"
        case _:
            message = " or ".join(dict.fromkeys(_demand(each) for each in details))
            return f"{message}, got {given}{_hint(detail)}"


def _demand(detail: ErrorDetails) -> str:
    message = detail["msg"].replace("Input should be", "must be", 1)
    return message.replace("an object", "a mapping").replace("a valid array", "a list")


def _hint(detail: ErrorDetails) -> str:
    value, kind = detail["input"], detail["type"]
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "literal_error" and isinstance(value, str):
        return nearest(value, detail["ctx"]["expected"].split("'")[1::2])
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    return "; write true or false" if kind == "bool_type" else ""


def _path(detail: ErrorDetails, tree: Mapping[str, Any]) -> Path:
    """The place in the input, without the union members that pydantic names on the way."""
    node: Any = tree
    path: list[str | int] = []
    for position, part in enumerate(detail["loc"]):
        absent = detail["type"] == "missing" and position == len(detail["loc"]) - 1
        in_mapping = isinstance(node, Mapping) and part in node
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_mapping or in_list:
            node = node[part]
        if in_mapping or in_list or absent:
            path.append(part)
    return tuple(path)


def _known_key(path: Path, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Suggest a similar sibling, else a similar key at another place, else list the siblings."""
    word, parent = str(path[-1]), path[:-1]
    siblings = [name for model in _models_at(parent, tree, schema) for name in model.model_fields]
    own = _dotted(tuple(part for part in path if isinstance(part, str)))
    elsewhere = {known.rpartition(".")[2]: known for known in reversed(list(_all_keys(schema)))}  # the first wins
    if own in _all_keys(schema):  # right place, but for another kind
        return f"; this kind knows {', '.join(siblings)}"
    if similar := get_close_matches(word, siblings, n=1, cutoff=0.7):
        return f"; did you mean {_dotted((*parent, similar[0]))}?"
    if similar := get_close_matches(word, list(elsewhere), n=1, cutoff=0.7):
        return f"; did you mean {elsewhere[similar[0]]}?"
    return f"; known here: {', '.join(siblings)}" if siblings else "; nothing is configured here"


def _choices(path: Path, tree: Mapping[str, Any], schema: type[BaseModel]) -> str:
    kinds = [get_args(model.model_fields["kind"].annotation)[0] for model in _models_at(path, tree, schema)]
    return ", ".join(map(str, kinds))


def _models_at(path: Path, tree: Mapping[str, Any], schema: type[BaseModel]) -> list[type[BaseModel]]:
    """The configuration classes that may stand at ``path``, narrowed by the kinds that the input names."""
    models: list[type[BaseModel]] = [schema]
    node: Any = tree
    for part in path:
        node = node[part]
        if isinstance(part, str):  # an integer stands for an item of a list, whose classes are known already
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for field in fields for model in _models_in(field.annotation)]
        if isinstance(node, Mapping) and "kind" in node:
            models = [model for model in models if node["kind"] in _kinds(model)] or models
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configuration classes inside a type, through unions, tuples, dictionaries and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) not in (None, Literal):
        for inner in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
            yield from _models_in(inner)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _all_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        for model in _models_in(field.annotation):
            yield from _all_keys(model, f"{prefix}{name}.")


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the whole"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
