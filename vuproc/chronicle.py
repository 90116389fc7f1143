"""The record of one front-end's session for a successor: journal, outbox and stored descriptors.

The master calls it around each message, in this order: `take`, `begin` before each effect,
`applied` with the answer, and `send_rest` as long as it is `replying`. In between it may die at any
instruction.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass

import msgspec

from vuproc.errors import CloseConnection, ConnectionBroken, VuprocError
from vuproc.estate import SESSION, Estate
from vuproc.fd import Fd
from vuproc.fdstore import FdStore
from vuproc.journal import Applying, Idle, Journal, JournalFull, Phase, Receiving, Replying
from vuproc.outbox import Outbox
from vuproc.peek import PeekingReceiver, drop, untaken, was_read
from vuproc.resume import Decision, decide
from vuproc.session import Offer, Session
from vuproc.spec.vhost_user import FRONT_END
from vuproc.systemd import HasFileno
from vuproc.wire import NOT_TAKEN, SEND_DEADLINE, Message, send_some
from vuproc.workers.crew import Crew
from vuproc.workers.crew_state import CrewState

log = logging.getLogger("vuproc.master")

VERSION = 1
"""Of what is in a snapshot beside the session's own part."""
CONNECTION = f"{SESSION}connection"
JOURNAL = f"{SESSION}journal"
OUTBOX_READ = f"{SESSION}outbox-read"
OUTBOX_WRITE = f"{SESSION}outbox-write"


class _Snapshot(msgspec.Struct, frozen=True):
    version: int
    session: bytes
    names: dict[str, str]
    """The session's name of a descriptor -> its name in the store, less the prefix."""
    config: tuple[tuple[int, bytes], ...]
    kept: tuple[tuple[int, int], ...]
    records: str | None


class Lost(VuprocError):
    """The predecessor's session cannot be taken up; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Resumed:
    """A predecessor's session, taken up: its state is committed, and no worker knows of it yet."""

    chronicle: Chronicle
    session: Session
    crew: CrewState
    decision: Decision
    message: Message | None
    """The message that is to be applied again; its descriptors are its own."""
    begun: int
    """Effects of it that were begun."""


class Chronicle:
    """Owns the connection's socket, journal and outbox, and has the session's descriptors kept."""

    def __init__(
        self, estate: Estate, sock: socket.socket, journal: Journal, outbox: Outbox, store: FdStore
    ) -> None:
        """Use `begin_session` or `take_up`."""
        self.socket = sock
        self.receiver = PeekingReceiver(sock, self._part_comes)
        self._estate = estate
        self._journal = journal
        self._outbox = outbox
        self._store = store
        self._names: tuple[str, ...] = ()
        self._phase: Phase = Idle()
        self._under_way = False
        self._parcel: tuple[bytes, tuple[Fd, ...]] | None = None
        """An answer that carries descriptors, and has not been sent."""
        self._send_by: float | None = None

    @classmethod
    def begin_session(
        cls, estate: Estate, sock: socket.socket, session: Session, crew: Crew
    ) -> Chronicle:
        """A new front-end is connected, and nothing was read from it. Raises OSError."""
        # First, and forgotten first: what a successor is left without it, is over. As nothing is
        # read before the journal is there, it alone is a session that has not begun.
        estate.keep(CONNECTION, sock)
        outbox = Outbox.create()
        try:
            journal = Journal.create()
        except BaseException:
            outbox.close()
            raise
        estate.notifier.store(OUTBOX_READ, outbox.read_end)
        estate.notifier.store(OUTBOX_WRITE, outbox.write_end)
        chronicle = cls(estate, sock, journal, outbox, FdStore(estate.notifier, SESSION))
        chronicle.amended(session, crew)
        estate.notifier.store(JOURNAL, journal.fd)
        chronicle.receiver.start()
        return chronicle

    @classmethod
    def unbegun(cls, estate: Estate) -> socket.socket | None:
        """The connection of a session that the predecessor did not come to begin, or None."""
        if JOURNAL in estate.names(SESSION) or CONNECTION not in estate.names(SESSION):
            return None
        connection = estate.take(CONNECTION)
        if connection is None:
            return None
        sock = socket.socket(fileno=connection.take())
        if was_read(sock):
            # There was a journal, and it is not here. `take_up` sees to the rest.
            log.error("the session of the last master is lost: %s was not kept", JOURNAL)
            _hang_up(sock)
            estate.notifier.remove(CONNECTION)
            return None
        estate.forget(SESSION)
        return sock

    @classmethod
    def take_up(cls, estate: Estate, offer: Offer) -> Resumed | None:
        """Take up the session that the predecessor left; None if it left none.

        Raises Lost if that cannot be, and then nothing of it is left: the front-end sees its
        connection end.
        """
        connection = estate.take(CONNECTION)
        if connection is None:
            estate.forget(SESSION)
            return None
        names = [CONNECTION, *estate.names(SESSION)]
        left = dict(estate.take_all(SESSION))
        sock = socket.socket(fileno=connection.take())
        try:
            resumed = cls._take_up(estate, offer, sock, left)
            names = list(left)
            estate.keep(CONNECTION, sock)
            return resumed
        except (VuprocError, OSError) as error:
            _hang_up(sock)
            raise Lost(str(error)) from error
        finally:
            # What is not used, or all of it.
            for name in names:
                estate.notifier.remove(name)
            for fd in left.values():
                fd.close()

    @classmethod
    def _take_up(
        cls, estate: Estate, offer: Offer, sock: socket.socket, left: dict[str, Fd]
    ) -> Resumed:
        """Take out of `left` what is used; the rest is nobody's."""
        missing = {JOURNAL, OUTBOX_READ, OUTBOX_WRITE} - left.keys()
        if missing:
            raise Lost(f"{sorted(missing)[0]} was not kept")
        store = FdStore(estate.notifier, SESSION, left)
        journal = Journal.open(left.pop(JOURNAL))
        outbox = Outbox(left.pop(OUTBOX_READ), left.pop(OUTBOX_WRITE))
        taken: list[Fd] = []
        try:
            phase, data = journal.read()
            snapshot = _decoded(data)
            taker = _Taker(store, left, taken)
            fds = {name: taker.take(stored) for name, stored in snapshot.names.items()}
            records = None if snapshot.records is None else taker.take(snapshot.records)
            message = None
            if isinstance(phase, Applying):
                came = tuple(taker.take(name) for name in phase.fds or ())
                message = Message(phase.request, phase.flags, phase.payload, came)
            decision = decide(
                phase,
                untaken=untaken(sock),
                unsent=outbox.unsent,
                may_carry_fds=_may_carry_fds(message),
            )
            if decision is Decision.CLOSE:
                raise Lost("it ended inside a message that cannot be applied again")
            session = Session.thaw(offer, snapshot.session, fds)
            if decision is Decision.APPLY_AGAIN:
                drop(sock, untaken(sock))
            else:
                message = None
            if decision is not Decision.SEND_REST:
                outbox.clear()
        except BaseException:
            for fd in taken:
                fd.close()
            journal.close()
            outbox.close()
            raise
        chronicle = cls(estate, sock, journal, outbox, store)
        chronicle.receiver.start()
        chronicle._names = tuple(store.held())
        if decision is not Decision.GO_ON:
            chronicle._phase, chronicle._under_way = phase, True
        begun = phase.begun if isinstance(phase, Applying) else 0
        crew = CrewState(snapshot.config, snapshot.kept, records)
        return Resumed(chronicle, session, crew, decision, message, begun)

    # Around a message.

    def take(self, message: Message) -> Message:
        """Take a message that the receiver has given, and note it; raises what `receive` does."""
        if not self.receiver.taken:
            self._write(Applying(message.request, message.flags, message.payload))
            message = self.receiver.take(message)
        if _may_carry_fds(message) or message.fds or not isinstance(self._phase, Applying):
            try:
                names = self._store.keep(message.fds)
                self._write(Applying(message.request, message.flags, message.payload, names))
            except BaseException:
                message.close()
                raise
        return message

    def begin(self, count: int) -> None:
        """The effect number `count` of the message, from 1, is begun."""
        self._journal.begin_effect(count)

    def applied(
        self, session: Session, crew: Crew, reply: bytes | None, fds: tuple[Fd, ...] = ()
    ) -> None:
        """The message is applied: note the state after it, and begin to send the answer, if there
        is one. The descriptors of the answer are ours from now on.

        Raises Disconnected or ConnectionBroken if it cannot be sent.
        """
        if fds:
            self._parcel = reply or b"", fds
        snapshot = self._snapshot(session, crew)
        if reply is None:
            self._settle(snapshot)
            return
        if fds:
            self._write(self._phase, snapshot)
        else:
            self._outbox.put(reply)
            self._write(Replying(exact=True), snapshot)
        self.send_rest()

    @property
    def replying(self) -> bool:
        """An answer is on its way: `send_rest` when the socket takes more, or at `deadline`. No
        message is to be read meanwhile.
        """
        return self._send_by is not None

    @property
    def deadline(self) -> float | None:
        """When the answer must be out (time.monotonic), None if there is none on its way."""
        return self._send_by

    def send_rest(self) -> None:
        """Send more of the answer, perhaps a predecessor's; never waits. Raises as `applied`, and
        ConnectionBroken if the peer has not taken it by the deadline.
        """
        if self._send_by is None:
            self._send_by = time.monotonic() + SEND_DEADLINE
        if (self._parcel is None or self._send_parcel()) and self._outbox.send(self.socket):
            self._send_by = None
            self._settle(None)
        elif time.monotonic() >= self._send_by:
            raise ConnectionBroken(NOT_TAKEN.format(SEND_DEADLINE))

    def _send_parcel(self) -> bool:
        """Send an answer that carries descriptors; False if the socket took nothing of it.

        Then a successor applies the message again, for which the state is as it was. Only around
        the attempt itself it could not know. What the socket leaves of it goes by the outbox.
        """
        assert self._parcel is not None
        reply, fds = self._parcel
        before = self._phase
        self._write(Replying(exact=False))
        sent = send_some(self.socket, reply, fds)
        if not sent:
            self._write(before)
            return False
        self._drop_parcel()
        if sent < len(reply):
            self._outbox.put(reply[sent:])
            self._write(Replying(exact=True))
        return True

    def _drop_parcel(self) -> None:
        _, fds = self._parcel or (b"", ())
        self._parcel = None
        for fd in fds:
            fd.close()

    def amended(self, session: Session, crew: Crew) -> None:
        """The state has changed without a message. Inside of one, its end will say so, too."""
        if self.replying:
            self._write(self._phase, self._snapshot(session, crew))
        elif not self._under_way:
            self._settle(self._snapshot(session, crew))

    def held(self) -> dict[str, HasFileno]:
        """All that a successor needs, by name, for a handover."""
        return {
            **self._store.held(),
            CONNECTION: self.socket,
            JOURNAL: self._journal.fd,
            OUTBOX_READ: self._outbox.read_end,
            OUTBOX_WRITE: self._outbox.write_end,
        }

    def close(self) -> None:
        """The session is over: end the connection, and have all of it forgotten."""
        # Copies of the socket may be in the store for a moment still.
        _hang_up(self.socket)
        self._estate.drop(CONNECTION)
        for name in (JOURNAL, OUTBOX_READ, OUTBOX_WRITE):
            self._estate.notifier.remove(name)
        self._store.remove_others(())
        self._drop_parcel()
        self.receiver.close()
        self._journal.close()
        self._outbox.close()

    # Inside.

    def _snapshot(self, session: Session, crew: Crew) -> bytes:
        data, fds = session.freeze()
        state = crew.freeze()
        wanted = [*fds.values(), *([] if state.records is None else [state.records])]
        self._names = self._store.keep(wanted)
        names = dict(zip(fds, self._names, strict=False))
        records = None if state.records is None else self._names[-1]
        return msgspec.msgpack.encode(
            _Snapshot(VERSION, data, names, state.config, state.kept, records)
        )

    def _settle(self, snapshot: bytes | None) -> None:
        """No message is under way."""
        self._write(Idle(), snapshot)
        self._store.remove_others(self._names)

    def _part_comes(self) -> None:
        self._write(Receiving())

    def _write(self, phase: Phase, snapshot: bytes | None = None) -> None:
        try:
            self._journal.write(phase, snapshot)
        except JournalFull as error:
            raise CloseConnection(str(error)) from error
        self._phase = phase
        self._under_way = not isinstance(phase, Idle | Receiving)


class _Taker:
    """Takes stored descriptors into use; one that is wanted twice is duplicated."""

    def __init__(self, store: FdStore, left: dict[str, Fd], taken: list[Fd]) -> None:
        self._store = store
        self._left = left
        self._taken = taken
        self._used: dict[str, Fd] = {}

    def take(self, name: str) -> Fd:
        if name in self._used:
            fd = self._used[name].dup()
        elif name in self._left:
            fd = self._used[name] = self._left.pop(name)
            self._store.adopt(name, fd)
        else:
            raise Lost(f"descriptor {name} was not kept")
        self._taken.append(fd)
        return fd


def _decoded(data: bytes) -> _Snapshot:
    try:
        snapshot = msgspec.msgpack.decode(data, type=_Snapshot)
    except msgspec.MsgspecError as error:
        raise Lost(f"its snapshot cannot be read: {error}") from error
    if snapshot.version != VERSION:
        raise Lost(f"its snapshot is of version {snapshot.version}, not {VERSION}")
    return snapshot


def _may_carry_fds(message: Message | None) -> bool:
    """Whether descriptors may have come with a message; of an unknown one, nobody can tell."""
    if message is None:
        return False
    row = FRONT_END.get(message.request)
    return row is None or row.fds[1] > 0


def _hang_up(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the peer was quicker
    sock.close()
