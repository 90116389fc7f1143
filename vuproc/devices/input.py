"""virtio-input: a keyboard, mouse or tablet, typed by a script or one of the host's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.input_backlog import INBOX_BYTES, Backlog, State, packed
from vuproc.devices.input_evdev import Evdev, describe, open_evdev
from vuproc.devices.input_kind import KINDS, Kind
from vuproc.devices.input_options import InputOptions
from vuproc.devices.input_source import (
    PRESSED,
    RELEASED,
    REPORT,
    Lines,
    Source,
    code_of,
    hit,
    open_pipe,
)
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.input import CONFIG_BYTES, CONFIG_HEAD, EVENT, SYN_REPORT, InputType

if TYPE_CHECKING:
    from vuproc.shm.request import Request

EVENTS, STATUS = 0, 1
"""The queues (virtio 1.3, section 5.8.2)."""
MOST_AT_ONCE = 256
"""Buffers that are filled before the worker looks at its queues again."""
MOST_IN_FRAME = 1024
"""Events of a subclass that belong together: what is more is a frame of its own."""

_STATES = (InputType.KEY, InputType.ABS, InputType.SW)
"""Types of events that say how something is, and not what it did: the last one counts."""


class Input(Device):
    """virtio-input: events of a named pipe, of the host's input devices, or of a subclass.

    An event queue and a status queue (virtio 1.3, section 5.8), and a configuration space in which
    the driver selects what it reads. A subclass calls `press`, `tap` and the like in its worker;
    `make_kind` says what it is.
    """

    device_id = 18
    queues = 2
    options_type: ClassVar[type[Options]] = InputOptions
    options: InputOptions

    def __init__(self, options: InputOptions | None = None) -> None:
        super().__init__(options)
        self._select = self._subsel = 0
        self._kind: Kind | None = None
        self._source: Source | None = None
        self._frame: list[int] = []
        self._missed: dict[tuple[int, int], int] = {}
        """By type and code, values that the driver has not been told for want of room."""
        self._reading = False
        self._settled = False

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """One worker."""
        return [(EVENTS, STATUS)]

    def config_space(self) -> bytes:
        """virtio 1.3, 5.8.4: the answer to what is selected."""
        shown = self.kind.shown(self._select, self._subsel) if self._select else b""
        head = CONFIG_HEAD.pack(select=self._select, subsel=self._subsel, size=len(shown))
        return (head + shown).ljust(CONFIG_BYTES, b"\0")

    def sandbox_needs(self) -> Needs:
        """Commands to what is of the host; it is open already."""
        evdev = self.options.evdev
        return self.needs if evdev is None else self.needs.with_more(Needs(devices=(evdev,)))

    def follows_at_once(self) -> bool:
        """The source is shared, and a grab is of its open file."""
        return type(self) is Input

    def shared_files(self) -> dict[str, Fd]:
        """What waits for the driver, and the source, opened once."""
        with shared.gathering() as files:
            files[self._named("state")] = shared.struct_file(State)
            source = self.open_source()
            if source is not None:
                files[self._named("source")] = source
        return files

    def open_source(self) -> Fd | None:
        """The descriptor that events are read from. Raises FileRefused."""
        if self.options.evdev is not None:
            return open_evdev(self.options.evdev, self.options.grab)
        return None if self.options.events is None else open_pipe(self.options.events)

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """A device that is grabbed cannot be opened a second time, so it is known by its name."""
        names = {self._named("state")}
        if self.options.events is not None or self.options.evdev is not None:
            names.add(self._named("source"))
        return left.keys() == names

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """The pipe, or the device, if another one is there by now."""
        file = self.shared.get(self._named("source"))
        for option, path in (("events", self.options.events), ("evdev", self.options.evdev)):
            if path is not None and file is not None:
                what = shared.replaced(path, file)
                if what is not None:
                    yield option, what

    def _named(self, what: str) -> str:
        return shared.named(
            f"input-{what}", self.options.events, self.options.evdev, self.options.grab
        )

    # What it is.

    @property
    def kind(self) -> Kind:
        """What the driver is told."""
        if self._kind is None:
            kind = self.make_kind()
            name, serial = self.options.name, self.options.serial
            self._kind = replace(kind, name=name or kind.name, serial=serial or kind.serial)
        return self._kind

    def make_kind(self) -> Kind:
        """What it is, before `name` and `serial`: once, in a worker."""
        if self.options.evdev is not None:
            return describe(self.shared[self._named("source")])
        return KINDS[self.options.kind]

    def make_source(self, file: Fd) -> Source:
        """What makes events of the bytes of `open_source`."""
        if self.options.evdev is not None:
            return Evdev(file, self.kind)
        return Lines(self.kind, lambda problem: self.log.warning("%s", problem))

    def config_written(self, offset: int, data: bytes) -> None:
        """Select; QEMU passes all of the space on each time, and the rest is not the driver's."""
        selected = bytearray((self._select, self._subsel))
        if offset < len(selected):
            selected[offset : offset + len(data)] = data
        self._select, self._subsel = selected[:2]

    def reset(self) -> None:
        """Nothing is selected."""
        self._select = self._subsel = 0

    # The work.

    def setup(self, queue: int) -> None:
        """Find what waits, and go on reading."""
        if queue != EVENTS:
            return
        self._backlog = Backlog(self.shared[self._named("state")])
        file = self.shared.get(self._named("source"))
        if file is not None:
            self._source = self.make_source(file)
            self._digest()

    def ring_started(self, queue: int) -> None:
        """There is a driver."""
        if queue == EVENTS:
            self._backlog.driven = True

    def ring_stopped(self, queue: int) -> None:
        """There is none."""
        if queue == EVENTS:
            self._backlog.driven = False

    def pulls(self, queue: int) -> bool:
        """Buffers for events stay with the driver until there is one."""
        return queue == EVENTS

    def available(self, queue: int) -> None:
        """Give the driver what waits."""
        if not self._settled:
            unfinished = self.unfinished(EVENTS)
            if unfinished is None:
                return  # there is no ring yet
            self._backlog.settle(unfinished)
            self._settled = True
        for _ in range(MOST_AT_ONCE):
            if not self._backlog.waiting or (buffer := self.take(EVENTS)) is None:
                break
            if buffer.writable < EVENT.size:
                buffer.finish(0)  # 5.8.6.1: it has room for an event
            else:
                self._backlog.send(buffer, lambda: self.publish(EVENTS))
        else:
            self.call_soon(lambda: self.available(EVENTS))
        self._make_up()
        if not self._reading:
            # There is still something to send: a frame has room before so many are sent at once.
            self._digest()

    def handle(self, request: Request) -> None:
        """Hear what the driver says of lights."""
        data = request.read(EVENT.size)
        if len(data) == EVENT.size:
            self.status(**EVENT.unpack(data))

    def status(self, type: int, code: int, value: int) -> None:
        """The driver says something: type LED, say, with code and value."""
        self.log.debug("status: type %d, code %d, value %d", type, code, value)
        if self._source is not None:
            self._source.status(type, code, value)

    # For subclasses, in the worker's thread.

    def emit(self, type: int, code: int, value: int) -> None:
        """One event, which the driver is given with those around it by the next `syn`."""
        self._frame.append(packed(type, code, value))
        if len(self._frame) >= MOST_IN_FRAME:
            self.syn()

    def syn(self) -> None:
        """What was emitted belongs together, and is whole."""
        frame, self._frame = self._frame, []
        self._send([*frame, packed(InputType.SYN, SYN_REPORT, 0)])

    def press(self, key: str) -> None:
        """A key goes down: `a`, `enter`, `btn_left`. ValueError if there is no such name."""
        self.emit(InputType.KEY, code_of(InputType.KEY, key), PRESSED)
        self.syn()

    def release(self, key: str) -> None:
        """It goes up again."""
        self.emit(InputType.KEY, code_of(InputType.KEY, key), RELEASED)
        self.syn()

    def tap(self, key: str) -> None:
        """It goes down and up."""
        self._send(hit(code_of(InputType.KEY, key)))

    def type_text(self, text: str) -> None:
        """The keys of a text, on a US keyboard. ValueError for what is on none."""
        self._send(Lines(self.kind, lambda _: None).typed(text))

    # What waits.

    def _send(self, events: list[int]) -> None:
        """Give them to the driver, or drop them all; what they say of keys is made up for."""
        if self._missed or len(events) > self._backlog.room:
            self.count_dropped(EVENTS, len(events))
            for event in events:
                data = EVENT.unpack(event.to_bytes(EVENT.size, "little"))
                if data["type"] in _STATES:
                    self._missed[data["type"], data["code"]] = data["value"]
            return
        self._backlog.push(events)
        self.call_soon(lambda: self.available(EVENTS))

    def _make_up(self) -> None:
        """Once there is room, tell the driver how all is that it has not heard of."""
        if self._missed and len(self._missed) < self._backlog.room:
            events = [packed(*what, value) for what, value in self._missed.items()]
            self._missed.clear()
            self._backlog.push([*events, REPORT])
            self.call_soon(lambda: self.available(EVENTS))

    def _read(self) -> None:
        """Some more bytes of the source."""
        assert self._source is not None
        backlog, source = self._backlog, self._source
        room = backlog.empty_inbox(source.length(bytes(backlog.unread())))
        try:
            # Into memory that outlives us: what is read is there, though we be killed.
            os.readv(self.shared[self._named("source")].fileno(), [room])
        except BlockingIOError:
            return
        except OSError as error:
            self.log.error("%s: %s", self.options.evdev or self.options.events, error.strerror)
            self._read_on(False)
            self._source = None
            return
        self._digest()
        self.available(EVENTS)

    def _digest(self) -> None:
        """Make events of the bytes in the inbox, as many as there is room for; then read on."""
        source, backlog = self._source, self._backlog
        if source is None:
            return
        data = bytes(backlog.unread())
        data, used, done = data[: source.length(data)], backlog.used, 0
        for end, events in source.frames(data):
            if len(events) > backlog.room:
                self._read_on(False)
                return
            backlog.push(events if backlog.driven or source.waits else (), used + end)
            done = end
        if len(data) - done > INBOX_BYTES // 2:
            events = source.overlong(data[done:])
            if len(events) > backlog.room:
                self._read_on(False)
                return
            backlog.push(events if backlog.driven or source.waits else (), used + len(data))
        self._read_on(True)

    def _read_on(self, wanted: bool) -> None:
        """Watch the source, or leave it: what it says stays there."""
        if wanted == self._reading:
            return
        file = self.shared[self._named("source")]
        if wanted:
            self.watch(file, self._read)
        else:
            self.unwatch(file)
        self._reading = wanted
