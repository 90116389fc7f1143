"""YAML text -> values that know where they stand, with every duplicate key and odd tag reported.

Only the composer of ruamel.yaml is used: it gives the scalars' text beside their YAML 1.2 type,
which `permissions: 0600` needs, and both keys of a duplicate pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode
from ruamel.yaml.reader import ReaderError

MAX_BYTES = 1 << 20
"""Size of the largest device file that is read."""
MAX_VALUES = 10_000
"""Values of the largest device file. Each use of an alias counts: aliases of aliases end here."""
MAX_DEPTH = 50
"""Levels of nesting, a bound for the recursion here and in the composer."""

_TAG = "tag:yaml.org,2002:"

Scalar: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"


class Mark(NamedTuple):
    """A place in the file; both count from 1."""

    line: int
    column: int


START = Mark(1, 1)

Report: TypeAlias = Callable[[Mark, str], None]


class ScalarValue(Struct, frozen=True):
    """A scalar: what it means, and how it is written."""

    mark: Mark
    value: Scalar
    text: str
    quoted: bool


class ListValue(Struct, frozen=True):
    """A sequence."""

    mark: Mark
    items: tuple[Value, ...]


class MapValue(Struct, frozen=True):
    """A mapping with string keys; `keys` says where each key stands."""

    mark: Mark
    items: dict[str, Value]
    keys: dict[str, Mark]


Value: TypeAlias = ScalarValue | ListValue | MapValue


class YamlUnreadable(Exception):
    """The text is no YAML document; the one problem has been reported."""


def read(text: str, report: Report) -> Value | None:
    """Parse one YAML document; None if it is empty.

    Problems go to `report`; YamlUnreadable is raised after one that leaves nothing to go on with.
    """
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        report(START if at is None else Mark(at.line + 1, at.column + 1), _syntax_message(error))
        raise YamlUnreadable from error
    except ReaderError as error:
        report(_mark_at(text, error.position), f"character {error.character!r} is not allowed")
        raise YamlUnreadable from error
    except YAMLError as error:
        report(START, f"not YAML: {error}")
        raise YamlUnreadable from error
    except RecursionError as error:
        report(START, "nested too deeply")
        raise YamlUnreadable from error
    return None if node is None else _Builder(report).build(node, 0)


def plain(value: Value) -> Plain:
    """The value without its places."""
    match value:
        case ScalarValue():
            return value.value
        case ListValue():
            return [plain(item) for item in value.items]
        case MapValue():
            return {key: plain(item) for key, item in value.items.items()}


class _Builder:
    """Turns composed nodes into values, within the bounds above."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._left = MAX_VALUES

    def build(self, node: YamlNode, depth: int) -> Value:
        mark = Mark(node.start_mark.line + 1, node.start_mark.column + 1)
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            what = "too many values" if self._left < 0 else "nested too deeply"
            self._report(mark, what)
            raise YamlUnreadable
        if isinstance(node, MappingNode):
            return self._mapping(node, mark, depth)
        if isinstance(node, SequenceNode):
            return ListValue(mark, tuple(self.build(item, depth + 1) for item in node.value))
        assert isinstance(node, ScalarNode)
        return self._scalar(node, mark)

    def _mapping(self, node: MappingNode, mark: Mark, depth: int) -> MapValue:
        items: dict[str, Value] = {}
        keys: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            at = Mark(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            value = self.build(value_node, depth + 1)
            if not isinstance(key_node, ScalarNode):
                self._report(at, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in items:
                self._report(at, f"duplicate key {key} (first on line {keys[key].line})")
                continue
            items[key], keys[key] = value, at
        return MapValue(mark, items, keys)

    def _scalar(self, node: ScalarNode, mark: Mark) -> ScalarValue:
        text = str(node.value)
        tag = str(node.tag)
        value: Scalar
        try:
            match tag.removeprefix(_TAG):
                case "null":
                    value = None
                case "bool":
                    value = text.lower() == "true"
                case "int":
                    value = _integer(text)
                case "float":
                    value = _float(text)
                case "str" | "timestamp" | "value" | "merge":
                    value = text
                case _:
                    self._report(mark, f"unknown tag {tag}")
                    value = text
        except ValueError:
            value = text  # more digits than Python converts: no field takes such a number
        return ScalarValue(mark, value, text, node.style in ("'", '"', "|", ">"))


def _integer(text: str) -> int:
    """A YAML 1.2 integer: decimal (leading zeros mean nothing), 0o17, 0x1f."""
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    for prefix, base in (("0o", 8), ("0x", 16), ("0b", 2)):
        if digits.lower().startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits, 10)


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _syntax_message(error: MarkedYAMLError) -> str:
    parts = [part for part in (error.problem, error.context) if part]
    message = " ".join(parts[:1]) if parts else "not YAML"
    if error.context and error.context_mark and error.problem:
        message += f" ({error.context} from line {error.context_mark.line + 1})"
    return message


def _mark_at(text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
