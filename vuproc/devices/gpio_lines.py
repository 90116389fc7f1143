"""Lines whose outside is simulated, and what outlives the worker of any lines."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar, Protocol

from vuproc.spec.gpio import Direction, IrqType

MOST_LINES = 256

_EACH = ctypes.c_uint8 * MOST_LINES


class State(ctypes.Structure):
    """For each line what the driver has chosen, and what goes on outside. A byte is one store.

    `output` is what the driver has set, `outside` what a script has; `level` is what was seen last,
    and `latched` an edge that the driver has not been told of.
    """

    _fields_: ClassVar = [
        ("direction", _EACH),
        ("output", _EACH),
        ("irq", _EACH),
        ("latched", _EACH),
        ("outside", _EACH),
        ("level", _EACH),
    ]


class Lines(Protocol):
    """The outside of all lines."""

    def apply(self, line: int) -> list[int]:
        """Direction, output or interrupt of a line have changed: make it so, and say on which lines
        something may be seen of it. Raises OSError.
        """

    def level(self, line: int) -> int:
        """0 or 1, as it is now. Raises OSError."""


class SimulatedLines:
    """Lines that scripts drive. Those that are wired together have one level."""

    def __init__(self, state: State, nets: Sequence[Sequence[int]]) -> None:
        """`nets`: for each line all that it is wired to, itself too."""
        self._state = state
        self._nets = nets

    def apply(self, line: int) -> list[int]:
        """All that hangs on the same wire may change."""
        return list(self._nets[line])

    def level(self, line: int) -> int:
        """An output is as it was set; an input as outputs on its wire say, or scripts. Of several
        a high one wins.
        """
        state, net = self._state, self._nets[line]
        if state.direction[line] == Direction.OUT:
            return int(state.output[line])
        driven = [state.output[each] for each in net if state.direction[each] == Direction.OUT]
        return int(max(driven or (state.outside[each] for each in net)))


def nets_of(wires: Sequence[int | None]) -> list[list[int]]:
    """For each line all that it is wired to; `wires` has one of them for each line, or None."""
    net = list(range(len(wires)))
    for line, other in enumerate(wires):
        if other is not None:
            old, new = net[line], net[other]
            net = [new if number == old else number for number in net]
    return [[other for other, found in enumerate(net) if found == number] for number in net]


def edge_seen(irq: int, level: int) -> bool:
    """Whether an interrupt of this type is for a line that has just got this level."""
    wanted = IrqType.EDGE_RISING if level else IrqType.EDGE_FALLING
    return bool(irq <= IrqType.EDGE_BOTH and irq & wanted)
