"""YAML in and out, the strict and small part of YAML 1.2 that a study needs.

Reading keeps the line of every key, collects all faults, and refuses what surprises people in
YAML 1.1: `1e-3` is a number, `no` is a text, duplicate keys and leading zeros are faults, tags are
never obeyed, aliases cannot explode. Knows nothing of studies. Built on PyYAML's event parser.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aim_tune.errors import Fault, StudyError

MAX_BYTES = 1_000_000
"""Largest file read."""
MAX_NODES = 10_000
"""Most values in a file, aliases counted as often as they are used."""
MAX_DEPTH = 20
"""Deepest nesting."""

BAD: Any = type("Bad", (), {"__repr__": lambda self: "BAD"})()
"""Stands for a value that already has its fault: later checks pass over it in silence."""

_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Located:
    """A value and where it stands."""

    value: Any
    """None, bool, int, float, str, BAD, a list of Located, or a dict of str -> Located."""
    where: str
    """file:line of the key (of the value itself in a list)."""

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() for v in self.value]
        return self.value

    @property
    def spoiled(self) -> bool:
        """Whether something in it has its fault already, so that no more need be said."""
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        return self.value is BAD or (
            isinstance(self.value, (dict, list)) and any(v.spoiled for v in inner)
        )


def load_text(text: str, source: str) -> tuple[Located, list[Fault]]:
    """The tree of `text` and everything that is wrong with it; what has a fault is BAD in the tree.

    >>> tree, faults = load_text("lr: 1e-3\\nname: no", "a.yaml")
    >>> tree.plain(), tree.value["name"].where, faults
    ({'lr': 0.001, 'name': 'no'}, 'a.yaml:2', [])
    """
    return _read(text, lambda line: f"{source}:{line}")


def load_value(text: str, where: str, key: str) -> tuple[Located, list[Fault]]:
    """Like `load_text` for the value of `key` from a flag: every part of it stands at `where`."""
    return _read(text, lambda line: where, key)


def load_file(path: Path) -> tuple[Located, list[Fault]]:
    """The tree and the faults of a file; one that cannot be read is a fault too."""
    try:
        if path.stat().st_size > MAX_BYTES:
            text = f"is larger than {MAX_BYTES:,} bytes: not a study file"
            return _nothing(str(path), text)
        return load_text(path.read_bytes().decode("utf-8-sig"), str(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return _nothing(str(path), f"cannot be read ({reason}); give the path of a YAML file")
    except UnicodeDecodeError as error:
        return _nothing(str(path), f"is not UTF-8 text (byte {error.start}); save it as UTF-8")


def load_plain(path: Path) -> dict[str, Any]:
    """The mapping in a file as plain values; raises StudyError with all faults."""
    tree, faults = load_file(path)
    if not faults and not isinstance(tree.value, dict):
        faults = [Fault(where=tree.where, key="", text=f"expected a mapping, found {say(tree)}")]
    if faults:
        raise StudyError(faults)
    return tree.plain()


def say(found: Located) -> str:
    """What was found, in words for an error text.

    >>> say(Located("on", "")), say(Located(3, "")), say(Located([], ""))
    ("the text 'on'", 'the number 3', 'a list')
    """
    match found.value:
        case None:
            return "null (nothing)"
        case bool():
            return str(found.value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            text = found.value if len(found.value) <= 60 else found.value[:57] + "..."
            return f"the text {text!r}"
    return f"the number {found.value}"


def _nothing(where: str, text: str) -> tuple[Located, list[Fault]]:
    return Located(BAD, where), [Fault(where=where, key="", text=text)]


def _read(text: str, place: Callable[[int], str], key: str = "") -> tuple[Located, list[Fault]]:
    composer = _Composer(text, place)
    try:
        return composer.document(key), composer.faults
    except yaml.YAMLError as error:
        composer.fault(_line(error, text), key, _problem(error))
    except _StopReading:
        pass
    return Located(BAD, place(1)), composer.faults


def _line(error: yaml.YAMLError, text: str) -> int:
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {error.character!r} is not allowed in YAML; remove it"
    problem = getattr(error, "problem", None) or str(error)
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"not YAML: {problem}{hint}"


class _StopReading(Exception):
    """A fault after which the rest of the text means nothing."""


class _Composer:
    """Turns parser events into a Located tree. `faults` grows as it reads."""

    def __init__(self, text: str, place: Callable[[int], str]) -> None:
        self.text = text
        self.place = place
        self.faults: list[Fault] = []
        self.anchors: dict[str, tuple[Located, int] | None] = {}
        self.nodes = 0

    def fault(self, line: int, key: str, text: str) -> None:
        self.faults.append(Fault(where=self.place(line), key=key, text=text))

    def stop(self, line: int, key: str, text: str) -> _StopReading:
        self.fault(line, key, text)
        return _StopReading()

    def document(self, key: str) -> Located:
        self.events: Iterator[Any] = yaml.parse(self.text, Loader=yaml.SafeLoader)
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return Located(None, self.place(1))
        tree = self.node(next(self.events), key, 0, None)
        next(self.events)  # document end
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self.stop(
                _start(after), "", "a second document starts here; keep one study per file"
            )
        return tree

    def node(self, event: Any, key: str, depth: int, key_line: int | None) -> Located:
        line = key_line or _start(event)
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            text = f"more than {MAX_DEPTH} levels or {MAX_NODES:,} values (aliases counted)"
            raise self.stop(line, key, text + ": not a study file")
        if isinstance(event, yaml.AliasEvent):
            return Located(self.alias(event, key).value, self.place(line))
        before = self.nodes
        if event.anchor:
            self.anchors[event.anchor] = None  # being read: an alias inside would be a circle
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.fault(line, key, f"the tag {tag} is not obeyed; write the value alone")
        if isinstance(event, yaml.MappingStartEvent):
            value: Any = self.mapping(key, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(key, depth)
        else:
            value = self.scalar(event, key, line)
        found = Located(value, self.place(line))
        if event.anchor:
            self.anchors[event.anchor] = (found, self.nodes - before)
        return found

    def alias(self, event: Any, key: str) -> Located:
        known = self.anchors.get(event.anchor)
        if known is None:
            text = f"*{event.anchor} refers to itself or to nothing above it; write the value out"
            raise self.stop(_start(event), key, text)
        self.nodes += known[1]
        return known[0]

    def sequence(self, key: str, depth: int) -> list[Located]:
        items: list[Located] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, f"{key}[{len(items)}]", depth + 1, None))
        return items

    def mapping(self, key: str, depth: int) -> dict[str, Located]:
        items: dict[str, Located] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _start(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise self.stop(line, key, "keys must be plain words, not lists, mappings, aliases")
            name = event.value
            dotted = f"{key}.{name}" if key else name
            value = self.node(next(self.events), dotted, depth + 1, line)
            if name in items:
                self.fault(line, dotted, f"given twice, first at {items[name].where}; keep one")
            else:
                items[name] = value
        return items

    def scalar(self, event: Any, key: str, line: int) -> Any:
        if event.tag:
            return BAD
        if not event.implicit[0]:
            return event.value  # quoted, or a block of text
        try:
            return resolve(event.value)
        except ValueError as error:
            self.fault(line, key, str(error))
            return BAD


def _start(event: Any) -> int:
    return event.start_mark.line + 1


def resolve(text: str) -> bool | int | float | str | None:
    """What an unquoted `text` means: YAML 1.2, minus what is ambiguous or not finite.

    Raises ValueError, with what to write instead, for leading zeros, .inf, .nan and huge numbers.

    >>> [resolve(t) for t in ("1e-3", "on", "true", "0x10", "1_000", "~")]
    [0.001, 'on', True, 16, '1_000', None]
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"{text} starts with a zero: 8 or 10? write it without, or quote a text")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if len(text) <= 20 and _INT.fullmatch(text):
        number = int(text, 0)
        if abs(number) < 2**63:
            return number
        raise ValueError(f"{text} is too large a number")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isfinite(value):
            return value
        raise ValueError(f"{text[:30]} is too large a number")
    return text


class _Dumper(yaml.SafeDumper):
    """Short collections on one line, numbers and texts such that `resolve` reads them back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_float(self, data: float) -> yaml.ScalarNode:
        if not math.isfinite(data):
            raise ValueError(f"{data} cannot be written: only finite numbers")
        digits, e, exponent = repr(data).partition("e")
        dotted = digits if "." in digits else digits + ".0"
        return self.represent_scalar("tag:yaml.org,2002:float", dotted + e + exponent)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if _needs_quotes(data) else ("|" if "\n" in data else None)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        return super().represent_mapping(tag, mapping, flow_style=_short(mapping))

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=_short(sequence))


_Dumper.add_representer(float, _Dumper.represent_float)
_Dumper.add_representer(str, _Dumper.represent_str)


_ODD_BREAKS = re.compile("[\r\x85\u2028\u2029]")  # line breaks to YAML 1.1, so to PyYAML


def _needs_quotes(text: str) -> bool:
    if _ODD_BREAKS.search(text):
        return True
    try:
        return not isinstance(resolve(text), str)
    except ValueError:
        return True


def _short(value: Any) -> bool:
    text = json.dumps(value)
    return len(text) <= 80 and "\\n" not in text


def dump(value: dict[str, Any], header_comment: str = "") -> str:
    """`value` (plain JSON values, str keys) as YAML that reads back equal; same value, same text.

    >>> print(dump({"lr": 1e-3, "shape": [4, 4, 16], "answer": "no"}, "mine"), end="")
    # mine
    lr: 0.001
    shape: [4, 4, 16]
    answer: 'no'
    """
    stream = io.StringIO()
    dumper = _Dumper(stream, width=100, allow_unicode=True, sort_keys=False)
    dumper.open()
    node: Any = dumper.represent_data(value)
    node.flow_style = False
    dumper.serialize(node)
    dumper.close()
    header = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
    return header + stream.getvalue()
