"""virtio-vsock: connections between programs of the guest and Unix sockets of the host."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from typing import Annotated

from msgspec import Meta

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.host_paths import why_not_made
from vuproc.devices.vsock_native import NativeVsock
from vuproc.devices.vsock_packets import Packets
from vuproc.devices.vsock_park import Park, parking
from vuproc.devices.vsock_switch import Switch
from vuproc.devices.vsock_table import CONNECTIONS_MOST, Table, table_file
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.options import KIND, PERMISSIONS, FilePath, Options, Size
from vuproc.sandbox.needs import Needs
from vuproc.spec.vsock import (
    CID_MAX,
    CID_MIN,
    CONFIG,
    EVENT,
    EVENT_MESSAGE,
    PORT_MAX,
    RX,
    TRANSPORT_RESET,
    TX,
    VsockFeature,
    VsockType,
)

BUFFER_MIN, BUFFER_MAX = 4 << 10, 4 << 20
MOST_TAKEN = 64
"""Buffers for events that are looked at for one that an event fits into."""
BUFFER_STEP = 4096
"""Bytes: areas are of whole pages."""
PATH_MOST = 107
"""Bytes of a Unix socket's path (sun_path, less its end)."""
FILES = ("listener", "table", "near", "far")
"""What workers share."""
LAYOUT = 3
"""Of the table: another number for another meaning of the same words."""


class VsockOptions(Options, kw_only=True):
    """The options of `type: vsock`."""

    path: Annotated[
        FilePath,
        Meta(
            description="The Unix socket that programs of the host connect to. They say CONNECT, a "
            "port of the guest's and a newline, and are answered OK and a number. What the guest "
            "connects to, port N of CID 2, is the Unix socket PATH_N, on which a program listens."
        ),
    ]
    permissions: Annotated[
        int,
        Meta(
            ge=0,
            le=0o777,
            description="Permissions of the socket that is made, octal.",
            extra={KIND: PERMISSIONS},
            extra_json_schema={"x-kind": PERMISSIONS},
        ),
    ] = 0o600
    cid: Annotated[
        int, Meta(ge=CID_MIN, le=CID_MAX, description="The guest's CID, its address.")
    ] = CID_MIN
    connections: Annotated[
        int, Meta(ge=1, le=CONNECTIONS_MOST, description="Connections at a time, at most.")
    ] = CONNECTIONS_MOST
    buffer: Annotated[
        Size,
        Meta(
            ge=BUFFER_MIN,
            le=BUFFER_MAX,
            description="Bytes of a connection that may wait for its reader, for each direction; "
            "the longest message of a SEQPACKET connection.",
        ),
    ] = 256 << 10

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that buffers are of whole pages, and that each port's socket can be had."""
        yield from super().problems()
        if self.buffer % BUFFER_STEP:
            yield "buffer", f"not a multiple of {BUFFER_STEP}"
        most = PATH_MOST - len(f"_{PORT_MAX}")
        if len(os.fsencode(self.path)) > most:
            yield "path", f"longer than {most} bytes, which leave room for the number of a port"
        if problem := why_not_made(self.path):
            yield "path", problem


class Vsock(Device):
    """virtio-vsock: sockets between the guest and Unix sockets of the host.

    A queue to receive from, one to send to and one for events (virtio 1.3, section 5.10), all of
    one worker.
    """

    device_id = 19
    queues = 3
    features = VsockFeature.STREAM | VsockFeature.SEQPACKET
    options_type = VsockOptions
    options: VsockOptions

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """They share the connections."""
        return [(RX, TX, EVENT)]

    def config_space(self) -> bytes:
        """virtio 1.3, 5.10.4: the guest's CID."""
        return CONFIG.pack(guest_cid=self.options.cid)

    def sandbox_needs(self) -> Needs:
        """A way to programs of the host, which may be of any user."""
        return self.needs.with_more(Needs(network="unix", capabilities=("DAC_OVERRIDE",)))

    def follows_at_once(self) -> bool:
        """What is known of connections is shared, and so are their sockets, in the parking. One
        that is not there yet ends with its worker, and nobody asks whether it has.
        """
        return type(self) is Vsock

    def shared_files(self) -> dict[str, Fd]:
        """The socket that listens, what there is of connections, and where their sockets are."""
        options = self.options
        listener, table, *ends = map(self._named, FILES)
        with shared.gathering() as files:
            files[listener] = shared.listening_socket(options.path, mode=options.permissions)
            files[table] = table_file(options.connections, options.buffer)
            try:
                files.update(zip(ends, parking(), strict=True))
            except OSError as error:
                raise FileRefused("path", f"a pair of sockets: {error.strerror}") from error
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Those of a device with the same options are ours. A socket cannot be had twice."""
        return left.keys() == set(map(self._named, FILES))

    def _named(self, what: str) -> str:
        own = self.options
        memory = LAYOUT, own.connections, own.buffer
        return shared.named(what, own.path, own.permissions, own.cid, *memory)

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Find what is shared. Another worker may be at work still: nothing is touched yet."""
        if queue != RX:
            return
        options, files = self.options, self.shared
        table = Table(files[self._named("table")], options.connections, options.buffer)
        self._table = table
        park = Park(files[self._named("near")], files[self._named("far")])
        self._streams = table.streams(options.cid)
        listener = files[self._named("listener")]
        self._switch = Switch(self, table, park, listener, options.cid, self._streams)
        self._packets = Packets(self, table, self._switch, options.path)
        self._began = self._receives = False

    def _begin(self) -> bool:
        """Once: nobody else is at work any more. False: a ring has to be there first, to tell what
        the driver has seen.
        """
        if not self._began:
            queue = self._table.depends_on
            unfinished = frozenset[int]() if queue is None else self.unfinished(queue)
            if unfinished is None:
                return False
            self._recover(unfinished)
            self.call_soon(self._packets.run)
        return True

    def _recover(self, unfinished: Container[int]) -> None:
        self._began = True
        self._table.recover(unfinished)
        self._switch.recover()

    def teardown(self) -> None:
        """Let go of everything; it is kept for a successor."""
        self._switch.leave()

    def pulls(self, queue: int) -> bool:
        """Packets are taken as there is room for what they cause, buffers as there are packets or
        events.
        """
        return True

    def native(self, queue: int) -> NativeVsock | None:
        """The data of streams is passed on by native code, when we say so."""
        return None if queue == EVENT else self._streams

    def features_acked(self, features: int) -> None:
        """Remember whether there may be messages (5.10.3)."""
        kinds = {VsockType.STREAM}
        if features & VsockFeature.SEQPACKET:
            kinds.add(VsockType.SEQPACKET)
        self._packets.kinds = frozenset(kinds)

    def ring_started(self, queue: int) -> None:
        """Go on with what there is, and let programs of the host connect."""
        self._receives |= queue == RX
        if self._begin():
            self._switch.listen(self._receives)

    def ring_stopping(self, queue: int) -> None:
        """Give back what is in hand."""
        if queue == RX:
            self._switch.delivery.stopping()

    def ring_stopped(self, queue: int) -> None:
        """Programs wait until the driver is back."""
        if queue == RX:
            self._receives = False
            self._switch.listen(False)

    def save_state(self) -> bytes:
        """Nothing: the programs at the other ends of connections stay here."""
        return b""

    def load_state(self, data: bytes, version: int) -> None:
        """The driver comes from another device, and is told that its connections are lost."""
        if data:
            raise ValueError("a socket device takes nothing along")
        self.reset()
        self._table.commit((self._table.head, {"interrupted": 1}))

    def reset(self) -> None:
        """The driver has forgotten every connection: so do we."""
        if not self._began:
            self._recover(range(1 << 32))  # no request's end counts any more
        self._switch.listen(False)
        self._switch.start_over()
        self._table.commit((self._table.head, {"interrupted": 0}))

    def available(self, queue: int) -> None:
        """There are packets, or buffers for some."""
        if not self._begin():
            return
        if queue == RX:
            self._switch.pump()
            self._packets.go_on()
        elif queue == TX:
            self._packets.run()
        elif self._table.head.interrupted:
            self._tell_of_interruption()

    def _tell_of_interruption(self) -> None:
        """Virtio 1.3, 5.10.6.7: once, as soon as there is a buffer."""
        for _ in range(MOST_TAKEN):
            buffer = self.take(EVENT)
            if buffer is None:
                return
            if buffer.writable >= EVENT_MESSAGE.size:
                buffer.write(EVENT_MESSAGE.pack(id=TRANSPORT_RESET))
                self._table.finish(self, buffer, (self._table.head, {"interrupted": 0}))
                return
            buffer.finish(0)
