"""Which fields of a body go together, said in its schema as the validators demand it."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, JsonValue

Shape = dict[str, Any]

_NOTHING: list[JsonValue] = [None, [], False]


def given(*names: str) -> Shape:
    """Objects in which all of these fields say something."""
    return {"required": list(names), "properties": {name: {"not": {"enum": _NOTHING}} for name in names}}


def absent(*names: str) -> Shape:
    """Objects in which none of these fields says anything."""
    return {"properties": {name: {"enum": _NOTHING} for name in names}}


def constant(name: str, value: str, *, default: bool = False) -> Shape:
    """Objects with this value in a field, or without the field where the value is its default."""
    return {"required": [] if default else [name], "properties": {name: {"const": value}}}


def combined(*shapes: Shape) -> Shape:
    """Objects that have all of these shapes, which are of different fields."""
    return {
        "required": [name for shape in shapes for name in shape.get("required", [])],
        "properties": {name: rule for shape in shapes for name, rule in shape["properties"].items()},
    }


def either(*names: str) -> list[Shape]:
    """Objects in which exactly one of these fields says something."""
    return [combined(given(name), absent(*(other for other in names if other != name))) for name in names]


def shaped(*choices: list[Shape]) -> ConfigDict:
    """The configuration of a model whose objects have one shape of each choice."""
    # Inside of allOf, where generators of clients that know less of schemas do not trip over it.
    all_of: list[JsonValue] = [{"anyOf": list[JsonValue](choice)} for choice in choices]
    return ConfigDict(json_schema_extra={"allOf": all_of})
