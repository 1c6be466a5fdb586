"""Source: the text of a case file in, nodes that know their line out. Nothing in a file is executed or expanded.

YAML is read as its version 1.2 reads it, which is how editors do: `yes` and `no` are words, only `true` and `false`
are truth values, and there are neither dates nor sixties. Anchors, aliases and tags have no meaning here and are
refused, so a small file stays small. Events are read instead of PyYAML's own trees because those recurse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from vsp_report.errors import CaseError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_FAULTS = 20
"""More would scroll away the first, which is often the cause of the others."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f￾￿]")


@dataclass(slots=True)
class Node:
    """One value of a file. `value` is None, bool, int, float, str, a list of nodes or a dict of nodes."""

    value: Any
    line: int = 0
    """From 1; 0 where the value comes from no file."""
    written: str = ""
    """A plain scalar as it stands in the file: 2.50, yes."""

    def at(self, path: tuple[str | int, ...]) -> Node:
        """The node there, or the last one on the way to it."""
        node = self
        for step in path:
            try:
                node = node.value[step]
            except (TypeError, KeyError, IndexError):
                break
        return node

    def lines(self, path: str = "") -> Iterator[tuple[str, int]]:
        """Every path and its line, dotted as in the faults: steer.no-chair[0].set."""
        yield path, self.line
        if isinstance(self.value, dict):
            for key, node in self.value.items():
                yield from node.lines(f"{path}.{key}" if path else key)
        elif isinstance(self.value, list):
            for i, node in enumerate(self.value):
                yield from node.lines(f"{path}[{i}]")


@dataclass
class Faults:
    """What is wrong with one file, in the order in which it was found."""

    place: str
    found: list[CaseError] = field(default_factory=list)

    def add(self, line: int, fault: str, remedy: str) -> None:
        self.found.append(CaseError(f"{self.place}:{line}" if line else self.place, fault, remedy))


def read_source(data: bytes, faults: Faults) -> Node | None:
    """The nodes of a file, or None with at least one fault."""
    if len(data) > MAX_BYTES:
        faults.add(1, f"has {len(data):,} bytes", f"A case is at most {MAX_BYTES:,}; pictures stand in their own file.")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.add(data.count(b"\n", 0, error.start) + 1, "is not UTF-8 text", "Save the file as UTF-8.")
        return None
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        faults.add(line, f"contains the control character {control[0]!r}", "Delete it.")
        return None
    try:
        return _built(text, faults)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "cannot be read"
        faults.add(mark.line + 1 if mark else 1, f"is not YAML ({problem})", "Look at its indents, colons and quotes.")
    except _RefusedError as refused:
        faults.add(*refused.args)
    return None


class _RefusedError(Exception):
    """YAML that means something which case files do not know: line, fault, remedy."""


def _built(text: str, faults: Faults) -> Node | None:
    root: Node | None = None
    open_nodes: list[Node] = []
    keys: list[str | None] = []
    """For each open mapping, the key that waits for its value."""
    documents = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _RefusedError(line, "begins a second document", "One file is one case: delete the line '---'.")
            continue
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            open_nodes.pop()
            keys.pop()
            continue
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _RefusedError(line, "uses an anchor or alias (& or *)", "Write the value out, or put it in quotes.")
        if not isinstance(event, yaml.NodeEvent):
            continue
        if event.tag is not None:
            raise _RefusedError(line, f"uses the tag {event.tag[:40]!r}", "Delete it, or put the value in quotes.")
        parent = open_nodes[-1] if open_nodes else None
        if parent is not None and isinstance(parent.value, dict) and keys[-1] is None:
            if not isinstance(event, yaml.ScalarEvent):
                raise _RefusedError(line, "has a list or a mapping as a key", "Keys are words.")
            if event.value in parent.value:
                first = parent.value[event.value].line
                raise _RefusedError(
                    line, f"has {event.value[:60]!r} a second time (first on line {first})", "Delete one."
                )
            keys[-1] = event.value
            # The key holds its place and its line until its value comes.
            parent.value[event.value] = Node(None, line)
            continue
        node = _node(event, line)
        if parent is None:
            root = node
        elif isinstance(parent.value, list):
            parent.value.append(node)
        else:
            node.line = parent.value[keys[-1]].line
            parent.value[keys[-1]] = node
            keys[-1] = None
        if isinstance(node.value, (dict, list)):
            open_nodes.append(node)
            keys.append(None)
            if len(open_nodes) > MAX_DEPTH:
                raise _RefusedError(line, f"is nested more than {MAX_DEPTH} deep", "Nothing in a case is.")
    if root is None or root.value is None:
        faults.add(1, "is empty", "`vsp-report new` writes a case to start from.")
        return None
    return root


def _node(event: yaml.NodeEvent, line: int) -> Node:
    if isinstance(event, yaml.MappingStartEvent):
        return Node({}, line)
    if isinstance(event, yaml.SequenceStartEvent):
        return Node([], line)
    if event.style:  # quoted or a block: text, whatever it looks like
        return Node(event.value, line)
    return Node(_scalar(event.value), line, event.value)


def _scalar(text: str) -> Any:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if len(text) <= 60 and _DECIMAL.fullmatch(text):
        return float(text)
    return text


def nodes_of(data: Any) -> Node:
    """Nodes of plain data, which have no lines."""
    if isinstance(data, dict):
        return Node({str(key): nodes_of(value) for key, value in data.items()})
    if isinstance(data, (list, tuple)):
        return Node([nodes_of(value) for value in data])
    return Node(data, written="" if isinstance(data, str) else str(data))
