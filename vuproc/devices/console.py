"""virtio-console: a console and named ports, each with an end on the host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.console_control import Control
from vuproc.devices.console_ends import END_FILES, End, link, open_end
from vuproc.devices.console_options import ConsoleOptions
from vuproc.devices.console_port import Port, PortState
from vuproc.fd import Fd
from vuproc.spec.console import (
    CONFIG,
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    RECEIVE,
    TRANSMIT,
    ConsoleFeature,
    receive_queue,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

_MULTIPORT = int(ConsoleFeature.MULTIPORT)
_EMERGENCY_AT = CONFIG.offsets["emerg_wr"]
PIPES = ("out", "in")
"""Of a port: what is on its way to the host, and from there."""
PIPE_ENDS = tuple(f"{way}.{end}" for way in PIPES for end in ("read", "write"))


class Console(Device):
    """virtio-console: a console and named ports.

    Queues 0 and 1 receive and transmit for port 0, the console; 2 and 3 are for control, and a pair
    for each other port follows (virtio 1.3, 5.3.2). One worker serves all of them.
    """

    device_id = 3
    options_type = ConsoleOptions
    options: ConsoleOptions

    def __init__(self, options: ConsoleOptions) -> None:
        super().__init__(options)
        self._ports: list[Port] = []
        self._of_queue: dict[int, Port] = {}
        self._rings: set[int] = set()
        self._size_due = False
        self._told_again = False

    # What the master asks.

    def num_queues(self) -> int:
        """Two a port, and two for control if there are several ports."""
        ports = len(self.options.ports)
        return receive_queue(ports) + 2 if ports else 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        """One worker has all ports."""
        return [tuple(range(self.num_queues()))]

    def offered_features(self) -> int:
        """SIZE with a size, MULTIPORT with several ports."""
        features = ConsoleFeature.EMERG_WRITE
        if self.options.size is not None:
            features |= ConsoleFeature.SIZE
        if self.options.ports:
            features |= ConsoleFeature.MULTIPORT
        return features

    def config_space(self) -> bytes:
        """virtio 1.3, 5.3.4: the size of port 0's window, and how many ports there may be."""
        columns, rows = self.options.size or (0, 0)
        ports = 1 + len(self.options.ports)
        return CONFIG.pack(cols=columns, rows=rows, max_nr_ports=ports, emerg_wr=0)

    def follows_at_once(self) -> bool:
        """The ends are shared, and a client waits in the parking: what a worker has are copies."""
        return type(self) is Console

    def shared_files(self) -> dict[str, Fd]:
        """What is under way, and the ends of the ports."""
        with shared.gathering() as files:
            files[self._named("state")] = shared.struct_file(self._state_type())
            for number, (option, port) in enumerate(self.options.all_ports()):
                for way in PIPES:
                    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                    for end, file in zip(("read", "write"), map(Fd, ends), strict=True):
                        files[self._named(f"{number}.{way}.{end}")] = file
                for name, file in open_end(port.backend, port.path, option).items():
                    files[self._named(f"{number}.{name}")] = file
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Those of the same ports, which say in their names whose they are."""
        return self._named("state") in left

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """Files that output is appended to, if they are elsewhere by now."""
        for number, (option, port) in enumerate(self.options.all_ports()):
            if port.backend == "file" and port.path is not None:
                what = shared.replaced(port.path, self.shared[self._named(f"{number}.output")])
                if what is not None:
                    yield option, what

    def _state_type(self) -> type[ctypes.Structure]:
        ports = PortState * (1 + len(self.options.ports))
        fields = [("ports", ports), ("emergency", ctypes.c_uint64)]
        return type("ConsoleState", (ctypes.Structure,), {"_fields_": fields})

    def _named(self, what: str) -> str:
        ports = [(port.backend, port.path) for _, port in self.options.all_ports()]
        return shared.named(what, ports)

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Make the ports, once."""
        if queue != RECEIVE:
            return
        self._state = shared.struct(self._state_type(), self.shared[self._named("state")])
        self._told_again = self.recovered
        for number, (_, port) in enumerate(self.options.all_ports()):
            names = {name: self._named(f"{number}.{name}") for name in (*PIPE_ENDS, *END_FILES)}
            files = {
                name: self.shared[known] for name, known in names.items() if known in self.shared
            }
            out, in_ = (
                (files[f"{way}.read"].fileno(), files[f"{way}.write"].fileno()) for way in PIPES
            )
            end = End(files)
            made = Port(
                self,
                number,
                port.name if number else "",
                self._state.ports[number],
                end,
                (out, in_),
                self._changed,
                console=port.console,
            )
            self._ports.append(made)
            self._of_queue[made.receive_queue] = self._of_queue[made.transmit_queue] = made
            self._show(number, port.path, end.terminal)
        self._control = Control(
            self, self._ports, self.options.size, rows_first=self.options.resize == "rows-first"
        )
        self._control.begin(multiport=False)

    def _show(self, number: int, path: str | None, terminal: str | None) -> None:
        """Say where a port's terminal is, and have the link lead there."""
        if terminal is None:
            return
        if not self.recovered:
            self.log.info("port %d is at %s", number, terminal)
        if path is not None:
            try:
                link(path, terminal)
            except OSError as error:
                self.log.error("port %d: no link at %s: %s", number, path, error.strerror)

    def teardown(self) -> None:
        """Close the ends that are this worker's own."""
        for port in self._ports:
            port.close()

    def pulls(self, queue: int) -> bool:
        """All but what the driver says of its ports."""
        return queue != CONTROL_TRANSMIT

    def features_acked(self, features: int) -> None:
        """Whether the driver knows of several ports."""
        self._control.begin(multiport=bool(features & _MULTIPORT))

    def ring_started(self, queue: int) -> None:
        """Look first what of the last ring's counts."""
        self._rings.add(queue)
        self._told_again = False
        self._size_due = self.options.size is not None
        if queue in self._of_queue:
            self._of_queue[queue].ring_started(queue)

    def ring_stopping(self, queue: int) -> None:
        """Give back what a port has."""
        if queue in self._of_queue:
            self._of_queue[queue].ring_stopping(queue)

    def ring_stopped(self, queue: int) -> None:
        """There is none any more."""
        self._rings.discard(queue)

    def available(self, queue: int) -> None:
        """Go on with whatever waited for it."""
        if queue == CONTROL_RECEIVE:
            self._control.tell()
        elif queue in self._of_queue:
            port = self._of_queue[queue]
            if queue == TRANSMIT and self._size_due:
                # Linux reads the size when that changes, and not before. By now it has a console to
                # set it for.
                self._size_due = False
                self.config_changed()
            (port.receive if queue == port.receive_queue else port.transmit)()

    def handle(self, request: Request) -> None:
        """The driver says something of its ports."""
        self._control.heard(request)
        request.finish(0)

    def _changed(self) -> None:
        """Somebody has come to a port, or has gone."""
        if CONTROL_RECEIVE in self._rings and self.options.ports:
            self._control.tell()

    # Emergencies.

    def config_written(self, offset: int, data: bytes) -> None:
        """A character for port 0, from a driver that is not up yet, or not any more (5.3.4)."""
        at = _EMERGENCY_AT - offset
        if not 0 <= at < len(data):
            raise ValueError("a console has one field to write to, emerg_wr")
        character = data[at]
        # What the driver wrote last is told, once, to the worker that follows one that died.
        told_again = self._told_again and self._state.emergency == character + 1
        self._told_again = False
        self._state.emergency = character + 1
        if not told_again:
            self._ports[0].shout(bytes([character]))
