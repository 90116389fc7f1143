"""Values with places -> typed structs, going on after each problem so that all are reported."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import Meta

from vuproc import place
from vuproc.device_file import kinds
from vuproc.device_file.yaml_text import (
    ListValue,
    MapValue,
    Mark,
    Report,
    ScalarValue,
    Value,
    plain,
)
from vuproc.loader import suggestion
from vuproc.options import KIND

MAX_SHOWN = 60
"""Characters of a value that a message repeats."""

S = TypeVar("S", bound=msgspec.Struct)


class Failed:
    """Stands for a value whose problems have been reported."""


FAILED: Final = Failed()


class Converter:
    """Reports every problem of the values it converts; relative paths are taken from `base_dir`."""

    def __init__(self, report: Report, base_dir: Path) -> None:
        self._report = report
        self._base_dir = base_dir

    def struct(self, value: Value, struct: type[S], skip: Sequence[str] = ()) -> dict[str, Any]:
        """Convert a mapping field by field; keys in `skip` are somebody else's.

        Returns what could be converted, by attribute name, defaults left out; FAILED stands for
        what is wrong or missing.
        """
        if not isinstance(value, MapValue):
            self._report(value.mark, f"expected a mapping, got {_described(value)}")
            return {"": FAILED}
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        result: dict[str, Any] = {}
        for key, item in value.items.items():
            if key in skip:
                continue
            if key not in fields:
                known = [*fields, *skip]
                self._report(value.keys[key], f"unknown key {key}{suggestion(key, known)}")
                continue
            field = fields[key]
            result[field.name] = self._field(key, item, field.type)
        for key, field in fields.items():
            if key not in value.items and field.required and key not in skip:
                self._report(value.mark, f"missing key {key}")
                result[field.name] = FAILED
        return result

    def value(self, value: Value, wanted: Any, name: str = "") -> Any:
        """Convert one value to the type `wanted`; FAILED once its problems are reported."""
        inner, metas = _unwrapped(wanted)
        members = _members(inner)
        if members is not None:
            inner = _choose(value, [member for member in members if member is not NoneType])
            nested, more = _unwrapped(inner)
            inner, metas = nested, (*metas, *more)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return self._nested(value, inner)
        if isinstance(value, ListValue) and get_origin(inner) in (list, tuple):
            return self._list(value, inner, metas, name)
        return self._leaf(value, inner, metas, name)

    def _field(self, key: str, value: Value, wanted: Any) -> Any:
        if isinstance(value, ScalarValue) and value.value is None:
            if value.text in _choices(wanted):
                # A word of ours which YAML takes for nothing: `backend: null`.
                return value.text
            self._report(value.mark, f"{key} has no value; leave the line out for the default")
            return FAILED
        return self.value(value, wanted, key)

    def _nested(self, value: Value, struct: type[msgspec.Struct]) -> Any:
        fields = self.struct(value, struct)
        if FAILED in fields.values():
            return FAILED
        return self.make(struct, fields, value.mark)

    def make(self, struct: type[S], fields: dict[str, Any], mark: Mark) -> S | Failed:
        """Make the struct of converted fields; its `__post_init__` may still object."""
        try:
            return struct(**fields)
        except (ValueError, TypeError) as error:
            self._report(mark, str(error))
            return FAILED
        except (Exception, SystemExit) as error:
            self._report(mark, place.raised(struct, "__post_init__", error))
            return FAILED

    def _list(self, value: ListValue, wanted: Any, metas: tuple[Meta, ...], name: str) -> Any:
        arguments = get_args(wanted)
        item_type = arguments[0] if arguments else Any
        items = [self.value(item, item_type, f"{name}[{i}]") for i, item in enumerate(value.items)]
        if FAILED in items:
            return FAILED
        container = get_origin(wanted)
        return self._msgspec(value.mark, items, _annotated(container, metas), name, value)

    def _leaf(self, value: Value, wanted: Any, metas: tuple[Meta, ...], name: str) -> Any:
        content: object = plain(value)
        if isinstance(value, ScalarValue):
            for meta in metas:
                kind = (meta.extra or {}).get(KIND)
                if kind is None:
                    continue
                try:
                    content = kinds.convert(kind, value, self._base_dir)
                except kinds.KindError as error:
                    self._report(value.mark, f"{name}: {error}" if name else str(error))
                    return FAILED
        return self._msgspec(value.mark, content, _annotated(wanted, metas), name, value)

    def _msgspec(self, mark: Mark, content: object, wanted: Any, name: str, value: Value) -> Any:
        try:
            converted = msgspec.convert(content, wanted)
            if isinstance(converted, float) and not math.isfinite(converted):
                raise msgspec.ValidationError("Expected a finite number")
            return converted
        except msgspec.ValidationError as error:
            message, path = _reason(str(error))
            choices = _choices(wanted) if path == "" else []
            if choices:
                message = f"expected {_any_of(choices)}"
            at = _follow(value, path)
            advice = _close(at, choices) or _advice(at, message)
            text = f"{message}{_got(at, message)}{advice}"
            self._report(at.mark, f"{name}: {text}" if name else text)
            return FAILED


def _unwrapped(wanted: Any) -> tuple[Any, tuple[Meta, ...]]:
    if get_origin(wanted) is Annotated:
        inner, *extras = get_args(wanted)
        return inner, tuple(extra for extra in extras if isinstance(extra, Meta))
    return wanted, ()


def _annotated(inner: Any, metas: tuple[Meta, ...]) -> Any:
    for meta in metas:
        inner = Annotated[inner, meta]
    return inner


def _members(wanted: Any) -> tuple[Any, ...] | None:
    return get_args(wanted) if get_origin(wanted) in (Union, UnionType) else None


def _choose(value: Value, members: list[Any]) -> Any:
    """The member of a union which a value of this shape can only mean."""

    def is_struct(member: Any) -> bool:
        inner, _ = _unwrapped(member)
        return isinstance(inner, type) and issubclass(inner, msgspec.Struct)

    def is_list(member: Any) -> bool:
        inner, _ = _unwrapped(member)
        return (get_origin(inner) or inner) in (list, tuple)

    if len(members) > 1:
        match value:
            case MapValue():
                fitting = [member for member in members if is_struct(member)]
            case ListValue():
                fitting = [member for member in members if is_list(member)]
            case ScalarValue():
                fitting = [m for m in members if not is_struct(m) and not is_list(m)]
        members = fitting or members
    chosen = members[0]
    for member in members[1:]:
        chosen = chosen | member
    return chosen


_PATH = re.compile(r" - at `\$(.*)`$")
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
"""msgspec's words for types -> those of a device file."""


def _reason(text: str) -> tuple[str, str]:
    """msgspec's message as ours, and the path inside the value at which it applies."""
    match = _PATH.search(text)
    path = match.group(1) if match else ""
    message = _PATH.sub("", text)
    message = re.sub(r"`([\w |]+)`", lambda words: _in_our_words(words[1]), message)
    message = message.replace("`", "")
    return message[:1].lower() + message[1:], path


def _in_our_words(types: str) -> str:
    return " or ".join(_WORDS.get(word, word) for word in types.split(" | "))


def _choices(wanted: Any) -> list[str]:
    inner, _ = _unwrapped(wanted)
    return [str(choice) for choice in get_args(inner)] if get_origin(inner) is Literal else []


def _any_of(choices: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def _close(value: Value, choices: list[str]) -> str:
    """A did-you-mean, for words; a number that is near another is no slip of the pen."""
    if isinstance(value, ScalarValue) and isinstance(value.value, str):
        return suggestion(value.text, choices)
    return ""


def _follow(value: Value, path: str) -> Value:
    """The part of `value` at a msgspec path such as `.a[2]`, as far as it can be followed."""
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        if key and isinstance(value, MapValue) and key in value.items:
            value = value.items[key]
        elif index and isinstance(value, ListValue) and int(index) < len(value.items):
            value = value.items[int(index)]
        else:
            break
    return value


def _got(value: Value, message: str) -> str:
    """What stands in the file, unless the message has it already."""
    if not isinstance(value, ScalarValue):
        return ""
    text = value.text if len(value.text) <= MAX_SHOWN else f"{value.text[:MAX_SHOWN]}..."
    if ", got " in message:
        return f" {text!r}" if isinstance(value.value, str) else f" {text}"
    return f", got {text}"


def _advice(value: Value, message: str) -> str:
    if not isinstance(value, ScalarValue):
        return ""
    if message.startswith("expected a string") and not isinstance(value.value, str) and value.text:
        return f'; quote it: "{value.text}"'
    if message.startswith("expected true") and value.text.lower() in ("yes", "no", "on", "off"):
        return "; write true or false"
    if message.startswith("expected an integer") and isinstance(value.value, str) and value.quoted:
        return "; write it without quotes"
    return ""


def _described(value: Value) -> str:
    match value:
        case ScalarValue(value=None):
            return "nothing"
        case ScalarValue():
            return repr(cast(object, value.value))
        case ListValue():
            return "a list"
        case MapValue():
            return "a mapping"
