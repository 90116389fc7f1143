"""What `vuproc devices` prints and the reference pages hold: the options, from their types."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Container
from typing import Any, NamedTuple

import msgspec

from vuproc import options
from vuproc.device import Device
from vuproc.device_file.fixed import fixed_options
from vuproc.device_file.kinds import UNITS
from vuproc.device_file.schema import Schema, struct_schema
from vuproc.shm.counter_table import WORDS

WIDTH = 100
"""Columns of the printed pages."""


class Row(NamedTuple):
    """One key of the device file, in words."""

    key: str
    takes: str
    default: str
    """Empty if the key has none: it is required, or its absence means something of its own."""
    required: bool
    description: str


def rows(struct: type[msgspec.Struct], without: Container[str] = ()) -> list[Row]:
    """The keys that a struct of the device file takes, in order, but for some fields."""
    root, _ = struct_schema(struct, kinds=True, without=without)
    required = root.get("required", ())
    return [
        Row(key, _takes(node), _default(node), key in required, node.get("description", ""))
        for key, node in root["properties"].items()
    ]


def described(row: Row) -> str:
    """A sentence: what the key says, what it takes and its default."""
    default = "required" if row.required else f"default {row.default}" if row.default else ""
    return f"{row.description.rstrip('.')} ({'; '.join(filter(None, (row.takes, default)))})."


def descriptions(device: type[Device]) -> dict[str, str]:
    """What each option of a type says, by its key in the device file."""
    found = rows(device.options_type, fixed_options(device))
    return {row.key: described(row) for row in found}


def summary(name: str, device: type[Device]) -> str:
    """One line on a device type."""
    return f"{name:<12} virtio id {device.device_id:<3} {_first_line(device)}"


def page(name: str, device: type[Device]) -> str:
    """Everything about a device type, as text for a terminal."""
    lines = [f"{name} (virtio device id {device.device_id})", ""]
    lines += [inspect.cleandoc(device.__doc__ or "No description."), ""]
    lines += ["Options:"]
    for row in rows(device.options_type, fixed_options(device)):
        default = "required" if row.required else f"default {row.default}" if row.default else ""
        lines.append(f"  {row.key}: {'; '.join(filter(None, (row.takes, default)))}")
        lines += textwrap.wrap(
            row.description, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def markdown(struct: type[msgspec.Struct], without: Container[str] = ()) -> str:
    """The same rows, but for some fields, as a list for a reference page."""
    lines = []
    for row in rows(struct, without):
        default = "required" if row.required else f"default `{row.default}`" if row.default else ""
        head = f"* `{row.key}` ({'; '.join(filter(None, (row.takes, default)))})"
        lines += textwrap.wrap(
            f"{head}: {row.description}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines)


def counters_markdown() -> str:
    """What is counted for each queue, as a list for a reference page."""
    return "\n".join(f"* `{name}`: {word.help}." for name, word in WORDS.items() if word.counter)


def _first_line(device: type[Device]) -> str:
    return inspect.cleandoc(device.__doc__ or "").partition("\n")[0]


def _default(node: Schema) -> str:
    value = node.get("default", "")
    if node.get("x-kind") == options.PERMISSIONS and isinstance(value, int):
        return f"{value:04o}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]" if value else ""
    return str(value)


def _takes(node: Schema) -> str:
    if "anyOf" in node:
        return " or ".join(_takes(member) for member in node["anyOf"])
    if "$ref" in node:
        return "mapping"
    if "enum" in node:
        return _any_of(node["enum"])
    match node.get("x-kind"):
        case options.SIZE:
            return f"size{_bounds(node, _size)}"
        case options.PATH:
            return "path"
        case options.METRICS:
            return "address"
        case options.PERMISSIONS:
            return "octal permissions"
        case options.POWER_OF_TWO:
            return f"power of two{_bounds(node)}"
    match node.get("type"):
        case "integer":
            return f"integer{_bounds(node)}"
        case "number":
            return f"number{_bounds(node)}"
        case "string":
            most = node.get("maxLength")
            return f"text of up to {most} characters" if most else "text"
        case "boolean":
            return "true or false"
        case "array":
            items = node.get("items", {})
            return f"list of {_takes(items) if 'enum' in items else _plural(_takes(items))}"
        case "object":
            return "mapping"
    return "anything"


def _plural(takes: str) -> str:
    head, comma, rest = takes.partition(",")
    first, *more = head.split(" ", 1)
    return " ".join([f"{first}s", *more]) + comma + rest


def _any_of(values: list[Any]) -> str:
    words = [str(value) for value in values]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _bounds(node: Schema, show: Any = str) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f", {show(low)} to {show(high)}"
    if low is not None:
        return f", at least {show(low)}" if low else ""
    return f", at most {show(high)}" if high is not None else ""


def _size(number: int) -> str:
    """A size as one would write it in a device file."""
    for unit, factor in reversed(UNITS.items()):
        if unit not in ("", "B") and number >= factor and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)
