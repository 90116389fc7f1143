"""What an input device is: its name, and the events that it may send or take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vuproc.spec.input import ABS_INFO, DEVIDS, UNION_BYTES, InputSelect, InputType
from vuproc.spec.input_codes import BUTTONS, KEYS, LED

KindName = Literal["keyboard", "mouse", "tablet"]

VIRTUAL_BUS = 0x06
"""Where it is attached, in the driver's eyes: nowhere real (Linux, input.h: BUS_VIRTUAL)."""
TABLET_MAX = 32767
"""The right and the lower end of a tablet."""
_MOUSE_BUTTONS = frozenset(BUTTONS[name] for name in ("btn_left", "btn_right", "btn_middle"))


@dataclass(frozen=True, slots=True)
class Axis:
    """Bounds of an absolute axis, as EVIOCGABS of Linux has them."""

    minimum: int
    maximum: int
    fuzz: int = 0
    flat: int = 0
    resolution: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """What the driver is told. `codes`: by type, those that are sent, or taken (LED). `ids`: bus,
    vendor, product and version.
    """

    name: str
    codes: Mapping[int, frozenset[int]]
    axes: Mapping[int, Axis] = field(default_factory=dict)
    ids: tuple[int, int, int, int] = (VIRTUAL_BUS, 0, 0, 1)
    serial: str = ""
    properties: frozenset[int] = frozenset()

    def has(self, kind: int, code: int) -> bool:
        """Whether the driver expects such events."""
        return kind == InputType.SYN or code in self.codes.get(kind, ())

    def shown(self, select: int, subsel: int) -> bytes:
        """The answer to what the driver has selected, at most 128 bytes; empty: there is none."""
        match select, subsel:
            case InputSelect.ID_NAME, 0:
                return _text(self.name)
            case InputSelect.ID_SERIAL, 0:
                return _text(self.serial)
            case InputSelect.ID_DEVIDS, 0:
                return DEVIDS.pack(**dict(zip(DEVIDS.fields, self.ids, strict=True)))
            case InputSelect.PROP_BITS, 0:
                return bitmap(self.properties)
            case InputSelect.EV_BITS, kind:
                return bitmap(self.codes.get(kind, ()))
            case InputSelect.ABS_INFO, code if code in self.axes:
                axis = self.axes[code]
                return ABS_INFO.pack(
                    min=axis.minimum,
                    max=axis.maximum,
                    fuzz=axis.fuzz,
                    flat=axis.flat,
                    res=axis.resolution,
                )
        return b""


def bitmap(codes: Iterable[int]) -> bytes:
    """A bit for each code, in as few bytes as it takes."""
    bits = sum(1 << code for code in codes if code < UNION_BYTES * 8)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _text(text: str) -> bytes:
    """In UTF-8, as much as there is room for, and no half of a character."""
    data = text.encode(errors="replace")
    return data if len(data) <= UNION_BYTES else data[:UNION_BYTES].decode(errors="ignore").encode()


KINDS: dict[KindName, Kind] = {
    "keyboard": Kind(
        "vuproc keyboard",
        {
            InputType.KEY: frozenset(KEYS.values()),
            InputType.LED: frozenset(LED[name] for name in ("numl", "capsl", "scrolll")),
        },
    ),
    "mouse": Kind(
        "vuproc mouse",
        {
            InputType.KEY: _MOUSE_BUTTONS | {BUTTONS["btn_side"], BUTTONS["btn_extra"]},
            InputType.REL: frozenset((0, 1, 6, 8)),
        },
    ),
    "tablet": Kind(
        "vuproc tablet",
        {
            InputType.KEY: _MOUSE_BUTTONS,
            InputType.REL: frozenset((6, 8)),
            InputType.ABS: frozenset((0, 1)),
        },
        {0: Axis(0, TABLET_MAX), 1: Axis(0, TABLET_MAX)},
    ),
}
"""What `kind` names."""
