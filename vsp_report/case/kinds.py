"""Kinds: what a value of a case file may be. One declaration reads it, describes it to editors and writes it again.

A case is declared once, as frozen dataclasses whose fields say their kind (`asked`). From that one declaration
come the values (`read`, with located faults), the JSON Schema (`schema`) and the canonical data (`plain`), which
`read` takes back: `read(plain(value)) == value`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any

from vsp_report.case.source import Faults, Node

BAD: Any = object()
"""What reading gives where a fault was found."""

_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of characters, which double quotes in YAML can write; line feed and tab may be."""
_PERCENT = r"(100|[0-9]{1,2}(\.[0-9]+)?)%"
_FRACTION = r"[0-9]+/[1-9][0-9]*"


class Kind:
    """The base of all kinds. `expects` is the end of the sentence 'Write …'."""

    expects: str

    def fits(self, node: Node) -> bool:
        """Whether a value looks as if it were meant to be of this kind; chooses among forms."""
        raise NotImplementedError

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        raise NotImplementedError

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def plain(self, value: Any) -> Any:
        return value

    def refuse(self, node: Node, path: str, faults: Faults, fault: str = "", remedy: str = "") -> Any:
        fault = fault or ("is empty" if node.value is None else f"is {shown(node)}")
        faults.add(node.line, f"{path} {fault}" if path else fault, remedy or f"Write {self.expects}.")
        return BAD


def shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    text = node.written or repr(node.value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    more = ", …" if len(known) > 12 else ""
    return f"Known: {', '.join(known[:12])}{more}." if known else "There is none."


# --- single values -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text(Kind):
    expects: str = "text"
    longest: int = 1000
    pattern: str = ""
    lines: bool = False
    """may run over several lines"""

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, str)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not isinstance(node.value, str):
            quote = f"Put it in quotes: '{node.written}'." if node.written else ""
            return self.refuse(node, path, faults, remedy=quote)
        if not node.value.strip():
            return self.refuse(node, path, faults, "is empty")
        if len(node.value) > self.longest:
            fault = f"has {len(node.value):,} characters"
            return self.refuse(node, path, faults, fault, f"Write at most {self.longest:,}.")
        if unfit := _UNFIT.search(node.value):
            return self.refuse(node, path, faults, f"contains the control character {unfit[0]!r}", "Delete it.")
        if not self.lines and "\n" in node.value.strip("\n"):
            return self.refuse(node, path, faults, "runs over several lines", "Write it on one line.")
        if self.pattern and not re.fullmatch(self.pattern, node.value):
            return self.refuse(node, path, faults)
        return node.value

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": self.longest}
        return schema | ({"pattern": f"^(?:{self.pattern})$"} if self.pattern else {})


@dataclass(frozen=True)
class Choice(Kind):
    words: tuple[str, ...]

    @property
    def expects(self) -> str:
        return " or ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, str)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if node.value in self.words and isinstance(node.value, str):
            return node.value
        near = difflib.get_close_matches(str(node.value), self.words, n=1)
        return self.refuse(node, path, faults, remedy=f"Did you mean {near[0]}?" if near else "")

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True)
class Constant(Kind):
    """One word that stands for one value."""

    word: str
    value: Any

    @property
    def expects(self) -> str:
        return self.word

    def fits(self, node: Node) -> bool:
        return node.value == self.word

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        return self.value if self.fits(node) else self.refuse(node, path, faults)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"const": self.word}

    def plain(self, value: Any) -> Any:
        return self.word


@dataclass(frozen=True)
class Flag(Kind):
    expects = "true or false"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, bool)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        return node.value if isinstance(node.value, bool) else self.refuse(node, path, faults)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number(Kind):
    low: float = -1e9
    high: float = 1e9

    @property
    def expects(self) -> str:
        return f"a number from {self.low:,.10g} to {self.high:,.10g}"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, (int, float)) and not isinstance(node.value, bool)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not self.fits(node) or not math.isfinite(node.value) or not self.low <= node.value <= self.high:
            return self.refuse(node, path, faults)
        # Minus zero is equal to zero and would be written differently.
        return float(node.value) + 0.0

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def plain(self, value: Any) -> Any:
        return int(value) if value == int(value) else value


@dataclass(frozen=True)
class Whole(Kind):
    low: int = 0
    high: int = 10**9

    @property
    def expects(self) -> str:
        return f"a whole number from {self.low:,} to {self.high:,}"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, int) and not isinstance(node.value, bool)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not self.fits(node) or not self.low <= node.value <= self.high:
            return self.refuse(node, path, faults)
        return node.value

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Share(Kind):
    """From 0 to 1; may be written as 5% or as 4/5."""

    expects = "a share: 0.05, 5% or 1/20"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, (int, float, str)) and not isinstance(node.value, bool)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        share = math.nan
        if isinstance(node.value, str) and len(node.value) <= 20:
            if re.fullmatch(_PERCENT, node.value):
                share = float(node.value[:-1]) / 100
            elif re.fullmatch(_FRACTION, node.value):
                part, whole = node.value.split("/")
                share = int(part) / int(whole)
        elif self.fits(node) and not isinstance(node.value, str):
            share = float(node.value)
        return share + 0.0 if 0 <= share <= 1 else self.refuse(node, path, faults)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        text = {"type": "string", "maxLength": 20, "pattern": f"^(?:{_PERCENT}|{_FRACTION})$"}
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, text]}

    def plain(self, value: Any) -> Any:
        return int(value) if value == int(value) else value


@dataclass(frozen=True)
class Plain:
    """Any data, kept as canonical JSON so that it is frozen."""

    text: str

    @property
    def data(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Anything(Kind):
    """A mapping whose inside belongs to another language."""

    expects: str = "a mapping"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not self.fits(node):
            return self.refuse(node, path, faults)
        try:
            return Plain(json.dumps(_data(node), sort_keys=True, allow_nan=False, ensure_ascii=True))
        except ValueError:
            return self.refuse(node, path, faults, "has a number that is not finite", "Write a finite one.")

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object"}

    def plain(self, value: Plain) -> Any:
        return value.data


def _data(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _data(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_data(inner) for inner in node.value]
    return node.value


# --- several values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Several(Kind):
    """A list. `alone`: a single value may stand there without its list."""

    of: Kind
    least: int = 0
    most: int = 1000
    unique: bool = False
    alone: bool = False

    @property
    def expects(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most:,}"
        return f"a list of {count}, each {self.of.expects}"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, list) or (self.alone and self.of.fits(node))

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if self.alone and not isinstance(node.value, list):
            value = self.of.read(node, path, faults)
            return BAD if value is BAD else (value,)
        if not isinstance(node.value, list):
            return self.refuse(node, path, faults)
        if not self.least <= len(node.value) <= self.most:
            return self.refuse(node, path, faults, f"has {len(node.value)} entries")
        values: list[Any] = []
        for i, inner in enumerate(node.value):
            value = self.of.read(inner, f"{path}[{i}]", faults)
            if self.unique and value is not BAD and value in values:
                value = self.refuse(inner, f"{path}[{i}]", faults, f"is {shown(inner)} again", "Delete one.")
            values.append(value)
        return BAD if BAD in values else tuple(values)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        one = self.of.schema(definitions)
        schema = {"type": "array", "items": one, "minItems": self.least, "maxItems": self.most}
        if self.unique:
            schema["uniqueItems"] = True
        return {"anyOf": [one, schema]} if self.alone else schema

    def plain(self, value: Any) -> Any:
        return [self.of.plain(one) for one in value]


@dataclass(frozen=True)
class Named(Kind):
    """A mapping from names that the author chooses. Values get their name as `name`."""

    of: Kind
    what: str
    pattern: str = r"[a-z0-9]+(-[a-z0-9]+)*"
    longest: int = 60
    most: int = 100
    least: int = 1

    @property
    def expects(self) -> str:
        return f"a mapping from names to each {self.what}"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not self.fits(node):
            return self.refuse(node, path, faults)
        if not self.least <= len(node.value) <= self.most:
            fault = f"has {len(node.value)} entries"
            return self.refuse(node, path, faults, fault, f"Write {self.least} to {self.most}.")
        values = []
        for key, inner in node.value.items():
            if len(key) > self.longest or not re.fullmatch(self.pattern, key):
                remedy = f"Write it in small letters, digits and hyphens, at most {self.longest}."
                self.refuse(inner, path, faults, f"names {key[: self.longest]!r}", remedy)
                values.append(BAD)
                continue
            value = self.of.read(inner, f"{path}.{key}", faults)
            values.append(BAD if value is BAD else replace(value, name=key))
        return BAD if BAD in values else tuple(values)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^(?:{self.pattern})$", "maxLength": self.longest},
            "additionalProperties": self.of.schema(definitions),
            "minProperties": self.least,
            "maxProperties": self.most,
        }

    def plain(self, value: Any) -> Any:
        return {one.name: self.of.plain(one) for one in value}


@dataclass(frozen=True)
class Either(Kind):
    """The first of several forms that a value looks like."""

    forms: tuple[Kind, ...]
    expects: str
    of_value: Callable[[Any], int]
    """Which form writes a value: its number in `forms`."""

    def fits(self, node: Node) -> bool:
        return any(form.fits(node) for form in self.forms)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        form = next((form for form in self.forms if form.fits(node)), None)
        return form.read(node, path, faults) if form else self.refuse(node, path, faults)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [form.schema(definitions) for form in self.forms]}

    def plain(self, value: Any) -> Any:
        return self.forms[self.of_value(value)].plain(value)


@dataclass(frozen=True)
class As(Kind):
    """Another kind, whose value is wrapped into one field of a dataclass."""

    record: type
    name: str
    of: Kind

    @property
    def expects(self) -> str:
        return self.of.expects

    def fits(self, node: Node) -> bool:
        return self.of.fits(node)

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        value = self.of.read(node, path, faults)
        return BAD if value is BAD else self.record(**{self.name: value})

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return self.of.schema(definitions)

    def plain(self, value: Any) -> Any:
        return self.of.plain(getattr(value, self.name))


# --- records -----------------------------------------------------------------------------------------------------


def asked(kind: Kind, says: str, default: Any = MISSING, *, key: str = "") -> Any:
    """A field of a case: its kind, its meaning, and its default if it may be left out. `key`: its word in the file,
    where Python keeps that word for itself."""
    return field(default=default, metadata={"kind": kind, "says": says, "key": key})


@dataclass(frozen=True)
class Record(Kind):
    """A mapping with the fields of a dataclass. `marked_by`: the keys that tell it from other forms.

    The class may have `EXACTLY_ONE`, groups of keys of which each mapping has one, and `faults()`, what is wrong
    with a value whose parts are all right: (path, fault, remedy).
    """

    of: type
    marked_by: tuple[str, ...] = ()

    @property
    def expects(self) -> str:
        return f"a mapping with {', '.join(_asked_fields(self.of))}"

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict) and (not self.marked_by or any(key in node.value for key in self.marked_by))

    def read(self, node: Node, path: str, faults: Faults) -> Any:
        if not isinstance(node.value, dict):
            return self.refuse(node, path, faults)
        known, values, fine = _asked_fields(self.of), {}, True
        for key, inner in node.value.items():
            if key not in known:
                fine = False
                shown = _UNFIT.sub("?", key[:60])
                where = f"{path}.{shown}" if path else shown
                faults.add(inner.line, f"{where} is unknown", nearest(key, known))
            elif (value := known[key].metadata["kind"].read(inner, _under(path, key), faults)) is BAD:
                fine = False
            else:
                values[known[key].name] = value
        for name, declared in known.items():
            if declared.default is MISSING and name not in node.value:
                fine = False
                says = declared.metadata["says"]
                faults.add(node.line, f"{_under(path, name)} is missing", f"Write {name}: {says}.")
        for group in getattr(self.of, "EXACTLY_ONE", ()):
            given = [name for name in group if name in node.value]
            if len(given) != 1:
                fine = False
                what = f"has {' and '.join(given)} together" if given else f"has none of {', '.join(group)}"
                faults.add(node.line, f"{path} {what}".strip(), f"Write one of {', '.join(group)}.")
        if not fine:
            return BAD
        value = self.of(**values)
        wrong = list(value.faults()) if hasattr(value, "faults") else []
        for where, fault, remedy in wrong:
            faults.add(node.at(where).line, f"{_under(path, _dotted(where))} {fault}", remedy)
        return BAD if wrong else value

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        name = self.of.__name__
        if name not in definitions:
            definitions[name] = {}  # it may name itself
            known = _asked_fields(self.of)
            properties = {}
            for key, declared in known.items():
                kind = declared.metadata["kind"]
                properties[key] = kind.schema(definitions) | {"description": declared.metadata["says"]}
                if declared.default is not MISSING and declared.default is not None:
                    properties[key]["default"] = kind.plain(declared.default)
            schema = {
                "type": "object",
                "additionalProperties": False,
                "properties": properties,
                "required": [key for key, declared in known.items() if declared.default is MISSING],
            }
            groups = [{"oneOf": [{"required": [key]} for key in g]} for g in getattr(self.of, "EXACTLY_ONE", ())]
            if groups:
                schema["allOf"] = groups
            definitions[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    def plain(self, value: Any) -> Any:
        found = {}
        for name, declared in _asked_fields(self.of).items():
            inner = getattr(value, declared.name)
            if inner is not None and not (inner == () and declared.default == ()):
                found[name] = declared.metadata["kind"].plain(inner)
        return found


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@cache
def _asked_fields(record: type) -> dict[str, dataclasses.Field]:
    return {f.metadata["key"] or f.name: f for f in fields(record) if "kind" in f.metadata}
