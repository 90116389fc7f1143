"""The event queue of a GPIO device: who waits for an interrupt, and is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vuproc.devices.gpio_lines import Lines, State
from vuproc.spec.gpio import IRQ_REQUEST, IrqStatus, IrqType

if TYPE_CHECKING:
    from vuproc.shm.request import Request


class Interrupts:
    """The buffers of the event queue: each is for one interrupt of its line, and unmasks it until
    then (virtio 1.3, section 5.18.7).
    """

    def __init__(self, state: State, lines: Lines, count: int) -> None:
        self._state = state
        self._lines = lines
        self._count = count
        self._held: dict[int, Request] = {}
        """By line, those that wait."""

    def unmask(self, buffer: Request) -> None:
        """A buffer has come. What it cannot wait for is told at once."""
        line = self._line_of(buffer)
        if line is None or line in self._held or not self._state.irq[line]:
            _answer(buffer, IrqStatus.INVALID)
            return
        buffer.defer()
        self._held[line] = buffer
        self.tell(line)

    def mask(self, line: int) -> None:
        """There is no interrupt to wait for any more."""
        buffer = self._held.pop(line, None)
        if buffer is not None and not buffer.finished:
            _answer(buffer, IrqStatus.INVALID)

    def tell(self, line: int) -> None:
        """Interrupt, if there is a reason to and the driver waits; that masks it."""
        irq = self._state.irq[line]
        buffer = self._held.get(line)
        if buffer is None or buffer.finished or not irq:
            return
        if irq in (IrqType.LEVEL_HIGH, IrqType.LEVEL_LOW):
            if self._lines.level(line) != (irq == IrqType.LEVEL_HIGH):
                return
        elif self._state.latched[line]:
            buffer.resubmit = "fail"  # from here on it comes to `resend`
            self._state.latched[line] = 0
        else:
            return
        del self._held[line]
        _answer(buffer, IrqStatus.VALID)

    def resend(self, buffer: Request) -> None:
        """An edge that a dead worker was telling of, and the driver has not seen."""
        line = self._line_of(buffer)
        if line is not None:
            self._state.latched[line] = 0
        _answer(buffer, IrqStatus.INVALID if line is None else IrqStatus.VALID)

    def let_go(self) -> None:
        """Give back what waits."""
        for buffer in self._held.values():
            if not buffer.finished:  # as all are if the ring broke
                buffer.release()
        self._held.clear()

    def _line_of(self, buffer: Request) -> int | None:
        """The line, wherever the cursor is; None: there is no such line."""
        data = b"".join(bytes(part[: IRQ_REQUEST.size]) for part in buffer.readable_segments)
        if len(data) < IRQ_REQUEST.size or not buffer.writable_total:
            return None
        line: int = IRQ_REQUEST.unpack(data)["gpio"]
        return line if line < self._count else None


def _answer(buffer: Request, status: IrqStatus) -> None:
    if buffer.writable_total:
        buffer.put(0, bytes([status]))
    buffer.finish()
