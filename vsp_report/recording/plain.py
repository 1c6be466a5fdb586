"""Plain: dataclasses to JSON data and back, and their JSON Schema, all from the types of their fields.

Reading is strict, and says where: `steered[0].change is 'x'; expected a number`. Numbers that are not finite never
reach JSON: where a field may be None they are None, elsewhere they are a fault.
"""

from __future__ import annotations

import dataclasses
import math
import types
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from vsp_report.errors import InputError

REMEDY = "Make the recording again: `vsp-report run --force`."


class _Field(NamedTuple):
    name: str
    type: Any
    required: bool


@cache
def _fields(record: type) -> tuple[_Field, ...]:
    hints = get_type_hints(record)
    return tuple(
        _Field(f.name, hints[f.name], f.default is f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(record)
        if f.name != "arrays"
    )


def to_plain(value: Any, place: str = "") -> Any:
    """JSON data of a value; the arrays of a recording are not part of it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a character cannot be written
    if dataclasses.is_dataclass(value):
        return {f.name: _field_to_plain(value, f, place) for f in _fields(type(value))}
    if isinstance(value, dict):
        return {str(key): to_plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner, f"{place}[{i}]") for i, inner in enumerate(value)]
    # numpy's and torch's numbers come as often as Python's
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, (bool, int)):
        return number
    if isinstance(number, float):
        if not math.isfinite(number):
            raise InputError(f"recording{place}", f"is {number}", "Write None for what does not exist.")
        return number + 0.0
    raise InputError(f"recording{place}", f"is {type(value).__name__}", "Write text, numbers, or the parts of it.")


def _field_to_plain(value: Any, declared: _Field, place: str) -> Any:
    inner = getattr(value, declared.name)
    if isinstance(inner, float) and not math.isfinite(inner) and type(None) in get_args(declared.type):
        return None
    return to_plain(inner, f"{place}.{declared.name}")


def from_plain(kind: Any, data: Any, place: str, path: str = "") -> Any:
    """The value of this type that JSON data describes."""
    origin = get_origin(kind)
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, place, path)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in get_args(kind):
            return None
        faults = []
        for option in get_args(kind):
            if option is not type(None):
                try:
                    return from_plain(option, data, place, path)
                except InputError as error:
                    faults.append(error)
        raise faults[0]
    if origin is Literal:
        if data in get_args(kind) and isinstance(data, str):
            return data
        raise _fault(place, path, data, " or ".join(get_args(kind)))
    if origin is tuple:
        if not isinstance(data, list):
            raise _fault(place, path, data, "a list")
        inner = get_args(kind)
        if inner[-1] is not Ellipsis and len(data) != len(inner):
            raise _fault(place, path, data, f"a list of {len(inner)}")
        each = [inner[0]] * len(data) if inner[-1] is Ellipsis else inner
        pairs = enumerate(zip(each, data, strict=True))
        return tuple(from_plain(one, inside, place, f"{path}[{i}]") for i, (one, inside) in pairs)
    if origin is dict:
        if not isinstance(data, dict):
            raise _fault(place, path, data, "a mapping")
        return {key: from_plain(get_args(kind)[1], one, place, f"{path}.{key}") for key, one in data.items()}
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if kind in (str, bool, int) and type(data) is kind:
        return data
    raise _fault(place, path, data, {float: "a number", int: "a whole number", str: "text"}.get(kind, "true or false"))


def _record(record: type, data: Any, place: str, path: str) -> Any:
    if not isinstance(data, dict):
        raise _fault(place, path, data, "a mapping")
    declared = {f.name: f for f in _fields(record)}
    for key in data:
        if key not in declared:
            raise InputError(place, f"{path}.{key} is unknown".lstrip("."), REMEDY)
    for name, f in declared.items():
        if f.required and name not in data:
            raise InputError(place, f"{path}.{name} is missing".lstrip("."), REMEDY)
    return record(**{k: from_plain(declared[k].type, one, place, f"{path}.{k}".lstrip(".")) for k, one in data.items()})


def _fault(place: str, path: str, data: Any, expected: str) -> InputError:
    shown = {dict: "a mapping", list: "a list", type(None): "null"}.get(type(data)) or repr(data)[:60]
    return InputError(place, f"{path or 'it'} is {shown}; expected {expected}", REMEDY)


def schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            declared = _fields(kind)
            definitions[kind.__name__] = {
                "type": "object",
                "additionalProperties": False,
                "properties": {f.name: schema_of(f.type, definitions) for f in declared},
                "required": [f.name for f in declared if f.required],
            }
            if not kind.__doc__.startswith(f"{kind.__name__}("):  # which is what a dataclass writes where nobody did
                definitions[kind.__name__]["description"] = kind.__doc__.split("\n")[0]
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(option, definitions) for option in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return {"type": "array", "items": schema_of(inner[0], definitions)}
        each = [schema_of(one, definitions) for one in inner]
        return {"type": "array", "prefixItems": each, "minItems": len(inner), "maxItems": len(inner)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(inner[1], definitions)}
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": names[kind]}


def recording_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of recording.json."""
    from vsp_report.recording.parts import Recording

    definitions: dict[str, Any] = {}
    schema_of(Recording, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vsp-report recording",
        **definitions.pop("Recording"),
        "$defs": dict(sorted(definitions.items())),
    }
