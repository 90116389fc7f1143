"""virtio-gpio: lines whose outside is a script's, or lines of the host."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.control import Control
from vuproc.devices.gpio_host import HostLines, open_lines
from vuproc.devices.gpio_interrupts import Interrupts
from vuproc.devices.gpio_lines import MOST_LINES, Lines, SimulatedLines, State, edge_seen
from vuproc.devices.gpio_options import GpioOptions
from vuproc.errors import RequestAbandoned, in_words
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.gpio import (
    CONFIG,
    REQUEST,
    Direction,
    GpioFeature,
    GpioMessage,
    GpioStatus,
    IrqType,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

REQUESTS, EVENTS = 0, 1
"""The queues (virtio 1.3, section 5.18.2)."""
FAILED = bytes([GpioStatus.ERR, 0])


class Gpio(Device):
    """virtio-gpio: lines that are simulated, or the host's.

    A request queue and an event queue (virtio 1.3, section 5.18). A subclass drives its lines by
    `set_line`, and hears of them by `line_changed`.
    """

    device_id = 41
    queues = 2
    features = GpioFeature.IRQ
    options_type: ClassVar[type[Options]] = GpioOptions
    options: GpioOptions

    def __init__(self, options: GpioOptions) -> None:
        super().__init__(options)
        self._accepted = False
        """Whether the driver takes interrupts."""
        self._control: Control | None = None
        self._numbers = options.names()

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """One worker."""
        return [(REQUESTS, EVENTS)]

    def config_space(self) -> bytes:
        """virtio 1.3, 5.18.4: how many lines, and how long their names are."""
        return CONFIG.pack(ngpio=len(self.options.lines), gpio_names_size=len(self._names()))

    def _names(self) -> bytes:
        """All names, each with a zero behind it; nothing if no line has one."""
        if not self._numbers:
            return b""
        return b"".join((line.name or "").encode("ascii") + b"\0" for line in self.options.lines)

    def sandbox_needs(self) -> Needs:
        """Commands to what is of the host; it is open already."""
        chip = self.options.chip
        return self.needs if chip is None else self.needs.with_more(Needs(devices=(chip,)))

    def follows_at_once(self) -> bool:
        """Lines and socket are shared; what a script has connected is its own affair."""
        return type(self) is Gpio

    def shared_files(self) -> dict[str, Fd]:
        """The lines' state, and their descriptors or the socket of scripts."""
        with shared.gathering() as files:
            files[self._named("state")] = shared.struct_file(State)
            state = shared.struct(State, files[self._named("state")])
            for number, line in enumerate(self.options.lines):
                state.outside[number] = line.value
            lines = SimulatedLines(state, self.options.nets())
            for number in range(len(self.options.lines)):
                # As if it had always been so: it is no edge.
                state.level[number] = lines.level(number)
            if self.options.control is not None:
                files[self._named("control")] = shared.listening_socket(
                    self.options.control, option="control"
                )
            for number, file in enumerate(self.open_lines()):
                files[self._named(f"line-{number}")] = file
        return files

    def open_lines(self) -> list[Fd]:
        """A descriptor for each line of the host, in order. Raises FileRefused."""
        if self.options.chip is None:
            return []
        return open_lines(self.options.chip, [line.offset or 0 for line in self.options.lines])

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """A line, or a socket, cannot be had a second time, so they are known by name."""
        wanted = {"state"}
        if self.options.control is not None:
            wanted.add("control")
        if self.options.chip is not None:
            wanted |= {f"line-{number}" for number in range(len(self.options.lines))}
        return left.keys() == {self._named(name) for name in wanted}

    def _named(self, what: str) -> str:
        return shared.named(
            f"gpio-{what}", self.options.chip, self.options.control, self.options.lines
        )

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Find the lines as they were left, and see what has changed meanwhile."""
        if queue != REQUESTS:
            return
        self._state = shared.struct(State, self.shared[self._named("state")])
        self._lines = self.make_lines()
        self._interrupts = Interrupts(self._state, self._lines, len(self.options.lines))
        listener = self.shared.get(self._named("control"))
        if listener is not None:
            self._control = Control(self, listener, self.controlled, watched=True)
        if isinstance(self._lines, SimulatedLines):
            self._look(range(len(self.options.lines)))

    def make_lines(self) -> Lines:
        """The outside of the lines."""
        if self.options.chip is None:
            return SimulatedLines(self._state, self.options.nets())
        files = [
            self.shared[self._named(f"line-{number}")] for number in range(len(self.options.lines))
        ]
        lines = HostLines(self._state, files)
        for number, file in enumerate(files):
            self.watch(file, partial(self._host_told, lines, number))
        return lines

    def teardown(self) -> None:
        """Leave those who talk to us."""
        if self._control is not None:
            self._control.close()

    def features_acked(self, features: int) -> None:
        """Interrupts are for a driver that takes them."""
        self._accepted = bool(features & GpioFeature.IRQ)

    def reset(self) -> None:
        """No line is used."""
        for line in range(len(self.options.lines)):
            try:
                self._forget(line)
            except OSError as error:
                self.log.warning("line %s: %s", self._shown(line), in_words(error))

    def ring_stopping(self, queue: int) -> None:
        """Give back the buffers that wait for an interrupt."""
        if queue == EVENTS:
            self._interrupts.let_go()

    def handle(self, request: Request) -> None:
        """A message, or a buffer for an interrupt."""
        if request.queue == EVENTS:
            self._interrupts.unmask(request)
            return
        data = request.read(REQUEST.size)
        answer = FAILED if len(data) < REQUEST.size else self._answer(**REQUEST.unpack(data))
        request.write(answer)

    def fail(self, request: Request, error: BaseException) -> None:
        """An edge that a dead worker was telling of, and the driver has not seen, is told."""
        if request.queue == EVENTS and isinstance(error, RequestAbandoned):
            self._interrupts.resend(request)
        else:
            request.put(0, FAILED[: request.writable_total])
            request.finish()

    # Messages.

    def _answer(self, type: int, gpio: int, value: int) -> bytes:
        """The answer to a message (5.18.6)."""
        if type == GpioMessage.GET_LINE_NAMES:
            names = self._names()
            return bytes([GpioStatus.OK]) + names if names else FAILED
        if gpio >= len(self.options.lines):
            return FAILED
        state, result = self._state, 0
        try:
            match type:
                case GpioMessage.GET_DIRECTION:
                    result = state.direction[gpio]
                case GpioMessage.GET_VALUE:
                    result = self._lines.level(gpio)
                case GpioMessage.SET_VALUE if value in (0, 1):
                    self._change(state.output, gpio, value)
                case GpioMessage.SET_DIRECTION if value == Direction.NONE:
                    self._forget(gpio)
                case GpioMessage.SET_DIRECTION if value in (Direction.OUT, Direction.IN):
                    self._change(state.direction, gpio, value)
                case GpioMessage.SET_IRQ_TYPE if self._may_interrupt(gpio, value):
                    self._set_irq(gpio, value)
                case _:
                    return FAILED
        except OSError as error:
            self.log.warning("line %s: %s", self._shown(gpio), in_words(error))
            return FAILED
        return bytes([GpioStatus.OK, result])

    def _change(self, what: MutableSequence[int], line: int, value: int) -> None:
        """Something of a line; as it was, if that cannot be had. Raises OSError."""
        old, what[line] = what[line], value
        try:
            changed = self._lines.apply(line)
        except OSError:
            what[line] = old
            raise
        self._look(changed)

    def _may_interrupt(self, line: int, kind: int) -> bool:
        """5.18.6.8: not without the feature, and no output does."""
        known = any(kind == each for each in IrqType)
        output = self._state.direction[line] == Direction.OUT
        return self._accepted and known and not (output and kind != IrqType.NONE)

    def _set_irq(self, line: int, kind: int) -> None:
        """From now on; what was latched is gone, and so is who waits if there is none any more."""
        self._state.irq[line] = IrqType.NONE
        self._state.latched[line] = 0
        self._change(self._state.irq, line, kind)
        if kind == IrqType.NONE:
            self._interrupts.mask(line)
        else:
            self._interrupts.tell(line)

    def _forget(self, line: int) -> None:
        """5.18.6.9: all that the driver has chosen for a line."""
        state = self._state
        state.irq[line] = state.latched[line] = state.output[line] = 0
        state.direction[line] = Direction.NONE
        self._interrupts.mask(line)
        self._look(self._lines.apply(line))

    # What is seen of lines.

    def _look(self, lines: range | list[int]) -> None:
        """See whether the level of simulated lines has changed; say so, once all have theirs."""
        state, changed = self._state, []
        for line in lines if isinstance(self._lines, SimulatedLines) else ():
            level = self._lines.level(line)
            if level != state.level[line]:
                if edge_seen(state.irq[line], level):
                    state.latched[line] = 1
                state.level[line] = level
                changed.append((line, level))
        for line, level in changed:
            self._interrupts.tell(line)
            if self._control is not None:
                self._control.tell(f"{self._shown(line)} {level}")
        # Last what is a subclass's, which may raise, or change more.
        for line, level in changed:
            self.line_changed(self._shown(line), level)

    def _host_told(self, lines: HostLines, line: int) -> None:
        """The kernel has something of a line. What a death interrupts is told once more."""
        if self._state.irq[line] <= IrqType.EDGE_BOTH:
            self._state.latched[line] = bool(self._state.irq[line])
        lines.empty(line)
        self._interrupts.tell(line)

    # For subclasses and scripts.

    def set_line(self, name: str, value: int) -> None:
        """Drive the outside of a simulated line. ValueError for no such line, or no 0 or 1."""
        line = self._number(name)
        if not isinstance(self._lines, SimulatedLines):
            raise ValueError("lines of the host are set by what is attached to them")
        if value not in (0, 1):
            raise ValueError(f"a line is 0 or 1, not {value}")
        self._state.outside[line] = value
        self._look(self._lines.apply(line))

    def level(self, name: str) -> int:
        """0 or 1, as a line is now. ValueError if there is none."""
        return self._lines.level(self._number(name))

    def line_changed(self, name: str, value: int) -> None:
        """A simulated line has got another level, whoever did it. Lines without a name have their
        number. What a worker dies in is not called again.
        """

    def controlled(self, words: list[str]) -> str:
        """The answer to a line of the control socket. ValueError if it makes no sense."""
        match words:
            case ["set", *name, ("0" | "1") as value]:
                self.set_line(" ".join(name), int(value))
                return "ok"
            case ["get", *name]:
                return str(self.level(" ".join(name)))
            case ["direction", *name]:
                found = self._state.direction[self._number(" ".join(name))]
                return Direction(found).name.lower()
        raise ValueError("it is none of set NAME 0, set NAME 1, get NAME, direction NAME, watch")

    def _number(self, name: str) -> int:
        line = self._numbers.get(name)
        if line is None and name.isdecimal() and len(name) <= len(str(MOST_LINES)):
            line = int(name)
        if line is None or line >= len(self.options.lines):
            raise ValueError(f"there is no line {name[:40]}")
        return line

    def _shown(self, line: int) -> str:
        return self.options.lines[line].name or str(line)
