"""How a structure of a specification is written down: its fields, their offsets, its size."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

_TOKEN = re.compile(r"(\d*)([a-zA-Z?])")

Buffer = bytes | bytearray | memoryview


class LayoutError(ValueError):
    """Bytes do not have the length that their layout demands, or a value does not fit it."""


class _Field(NamedTuple):
    """One named field: where it lies, how many values `struct` gives for it, its zero."""

    name: str
    offset: int
    values: int | None  # None: a single value; a number: a tuple of so many
    zero: int | bytes


class Layout:
    """One structure of fixed size: a `struct` format plus a name for each of its fields.

    The format begins with its byte order ("=" host order, "<" little-endian), so that there is no
    hidden padding. A token with a count ("256Q") is one field holding a tuple; "16s" is one field
    of bytes; "x" is padding and has no name.
    """

    def __init__(self, name: str, fmt: str, *fields: str) -> None:
        """Raises LayoutError if there are not as many names as tokens in the format."""
        if fmt[:1] not in ("=", "<"):
            raise LayoutError(f"{name}: the format must begin with its byte order")
        self.name = name
        self.format = fmt
        self._struct = struct.Struct(fmt)
        self._fields = _parse(name, fmt, fields)
        self.size: int = self._struct.size
        self.fields: tuple[str, ...] = fields
        self.offsets: dict[str, int] = {field.name: field.offset for field in self._fields}

    def unpack(self, data: Buffer, offset: int = 0) -> dict[str, Any]:
        """Read one structure at `offset`; LayoutError if the bytes end before it does."""
        if offset < 0 or len(data) - offset < self.size:
            there = max(0, len(data) - offset)
            raise LayoutError(f"{self.name} takes {self.size} bytes, {there} are there")
        flat = iter(self._struct.unpack_from(data, offset))
        return {
            field.name: next(flat)
            if field.values is None
            else tuple(next(flat) for _ in range(field.values))
            for field in self._fields
        }

    def pack(self, **values: Any) -> bytes:
        """Build the structure; a field that is not given is zero.

        Raises LayoutError on an unknown field or a value that does not fit.
        """
        flat: list[Any] = []
        for field in self._fields:
            value = values.pop(field.name, field.zero if field.values is None else ())
            if field.values is None:
                flat.append(value)
            else:
                if len(value) > field.values:
                    raise LayoutError(f"{self.name}.{field.name} holds {field.values} values")
                flat.extend((*value, *(0,) * (field.values - len(value))))
        if values:
            raise LayoutError(f"{self.name} has no field {', '.join(sorted(values))}")
        try:
            return self._struct.pack(*flat)
        except struct.error as error:
            raise LayoutError(f"{self.name}: {error}") from None

    def __repr__(self) -> str:
        return f"Layout({self.name!r}, {self.format!r}, {self.size} bytes)"


def _parse(name: str, fmt: str, names: Sequence[str]) -> tuple[_Field, ...]:
    order = fmt[0]
    waiting = list(names)
    fields: list[_Field] = []
    offset = 0
    for count, code in _TOKEN.findall(fmt[1:]):
        if code != "x":
            if not waiting:
                raise LayoutError(f"{name}: the format has more fields than names")
            values = int(count) if count and code != "s" else None
            zero = b"" if code == "s" else 0
            fields.append(_Field(waiting.pop(0), offset, values, zero))
        offset += struct.calcsize(f"{order}{count}{code}")
    if waiting:
        raise LayoutError(f"{name}: no format for {', '.join(waiting)}")
    return tuple(fields)
