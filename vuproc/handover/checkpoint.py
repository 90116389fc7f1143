"""The record of one front-end's session for a successor: state file, outbox and stored descriptors.

The master calls it around each message, in this order: `take`, `begin` before each effect,
`applied` with the answer, and `send_rest` as long as it is `replying`. In between it may die at any
instruction.
"""

from __future__ import annotations

import logging
import socket
import time

from msgspec import Struct

from vuproc.errors import CloseConnection, ConnectionBroken, VuprocError
from vuproc.fd import Fd, HasFileno
from vuproc.handover.fd_store import SESSION, FdStore
from vuproc.handover.outbox import Outbox
from vuproc.handover.peek import PeekingReceiver, drop, untaken, was_read
from vuproc.handover.resume import Decision, decide
from vuproc.handover.session_fds import SessionFds
from vuproc.handover.session_snapshot import FdTaker, Lost, decode
from vuproc.handover.state_file import (
    WHOLE,
    Applying,
    Idle,
    Parts,
    Phase,
    Receiving,
    Replying,
    StateFile,
    StateFull,
)
from vuproc.handover.written_parts import WrittenParts
from vuproc.pool.pool import WorkerPool
from vuproc.pool.pool_state import PoolState
from vuproc.spec.vhost_user import FRONT_END
from vuproc.vhost_user.session import Offer, Session
from vuproc.vhost_user.wire import NOT_TAKEN, SEND_DEADLINE, Message, send_some

log = logging.getLogger("vuproc.master")

CONNECTION = f"{SESSION}connection"
STATE_FILE = f"{SESSION}journal"
"""The state file's name in the store, as in the first version: it is between two programs."""
OUTBOX_READ = f"{SESSION}outbox-read"
OUTBOX_WRITE = f"{SESSION}outbox-write"


class Resumed(Struct, frozen=True):
    """A predecessor's session, resumed: its state is committed, and no worker knows of it yet."""

    checkpoint: Checkpoint
    session: Session
    pool: PoolState
    decision: Decision
    message: Message | None
    """The message that is to be applied again; its descriptors are its own."""
    begun: int
    """Effects of it that were begun."""


class Checkpoint:
    """Owns the connection's socket, state file and outbox; has the session's files kept."""

    def __init__(
        self,
        fd_store: FdStore,
        sock: socket.socket,
        state_file: StateFile,
        outbox: Outbox,
        store: SessionFds,
    ) -> None:
        """Use `begin_session` or `resume`."""
        self.socket = sock
        self.receiver = PeekingReceiver(sock, self._part_comes)
        self._fd_store = fd_store
        self._state_file = state_file
        self._outbox = outbox
        self._store = store
        self._written = WrittenParts(store)
        self._phase: Phase = Idle()
        self._under_way = False
        self._parcel: tuple[bytes, tuple[Fd, ...]] | None = None
        """An answer that carries descriptors, and has not been sent."""
        self._send_by: float | None = None

    @classmethod
    def begin_session(
        cls, fd_store: FdStore, sock: socket.socket, session: Session, pool: WorkerPool
    ) -> Checkpoint:
        """A new front-end is connected, and nothing was read from it. Raises OSError."""
        # First, and forgotten first: what a successor is left without it, is over. As nothing is
        # read before the state file is there, it alone is a session that has not begun.
        fd_store.keep(CONNECTION, sock)
        outbox = Outbox.create()
        try:
            state_file = StateFile.create()
        except BaseException:
            outbox.close()
            raise
        fd_store.notifier.store(OUTBOX_READ, outbox.read_end)
        fd_store.notifier.store(OUTBOX_WRITE, outbox.write_end)
        checkpoint = cls(fd_store, sock, state_file, outbox, SessionFds(fd_store.notifier, SESSION))
        checkpoint.state_changed(session, pool)
        fd_store.notifier.store(STATE_FILE, state_file.fd)
        checkpoint.receiver.start()
        return checkpoint

    @classmethod
    def not_started(cls, fd_store: FdStore) -> socket.socket | None:
        """The connection of a session that the predecessor did not come to begin, or None."""
        if STATE_FILE in fd_store.names(SESSION) or CONNECTION not in fd_store.names(SESSION):
            return None
        connection = fd_store.take(CONNECTION)
        if connection is None:
            return None
        sock = socket.socket(fileno=connection.take())
        if was_read(sock):
            # There was a state file, and it is not here. `resume` sees to the rest.
            log.error("the session of the last master is lost: %s was not kept", STATE_FILE)
            _hang_up(sock)
            fd_store.notifier.remove(CONNECTION)
            return None
        fd_store.forget(SESSION)
        return sock

    @classmethod
    def resume(cls, fd_store: FdStore, offer: Offer) -> Resumed | None:
        """Resume the session that the predecessor left; None if it left none.

        Raises Lost if that cannot be, and then nothing of it is left: the front-end sees its
        connection end.
        """
        connection = fd_store.take(CONNECTION)
        if connection is None:
            fd_store.forget(SESSION)
            return None
        names = [CONNECTION, *fd_store.names(SESSION)]
        inherited = dict(fd_store.take_all(SESSION))
        sock = socket.socket(fileno=connection.take())
        try:
            resumed = cls._resume(fd_store, offer, sock, inherited)
            names = list(inherited)
            fd_store.keep(CONNECTION, sock)
            return resumed
        except (VuprocError, OSError) as error:
            _hang_up(sock)
            raise Lost(str(error)) from error
        finally:
            # What is not used, or all of it.
            for name in names:
                fd_store.notifier.remove(name)
            for fd in inherited.values():
                fd.close()

    @classmethod
    def _resume(
        cls, fd_store: FdStore, offer: Offer, sock: socket.socket, inherited: dict[str, Fd]
    ) -> Resumed:
        """Take out of `inherited` what is used; the rest is nobody's."""
        missing = {STATE_FILE, OUTBOX_READ, OUTBOX_WRITE} - inherited.keys()
        if missing:
            raise Lost(f"{sorted(missing)[0]} was not kept")
        store = SessionFds(fd_store.notifier, SESSION, inherited)
        state_file = StateFile.open(inherited.pop(STATE_FILE))
        outbox = Outbox(inherited.pop(OUTBOX_READ), inherited.pop(OUTBOX_WRITE))
        taken: list[Fd] = []
        try:
            phase, parts = state_file.read()
            taker = FdTaker(store, inherited, taken)
            state, pool = decode(parts, offer, taker.share, taker.take)
            session = Session(offer, state)
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
            if decision is Decision.APPLY_AGAIN:
                drop(sock, untaken(sock))
            else:
                message = None
            if decision is not Decision.SEND_REST:
                outbox.clear()
            checkpoint = cls(fd_store, sock, state_file, outbox, store)
            if WHOLE in parts:
                # In our own format from now on.
                state_file.write(phase, checkpoint._written.changes(session, pool))
            else:
                checkpoint._written.adopt(state, pool)
        except BaseException:
            for fd in taken:
                fd.close()
            state_file.close()
            outbox.close()
            raise
        checkpoint.receiver.start()
        if decision is not Decision.GO_ON:
            checkpoint._phase, checkpoint._under_way = phase, True
        begun = phase.begun if isinstance(phase, Applying) else 0
        return Resumed(checkpoint, session, pool, decision, message, begun)

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
        self._state_file.begin_effect(count)

    def applied(
        self, session: Session, pool: WorkerPool, reply: bytes | None, fds: tuple[Fd, ...] = ()
    ) -> None:
        """The message is applied: note the state after it, and begin to send the answer, if there
        is one. The descriptors of the answer are ours from now on.

        Raises Disconnected or ConnectionBroken if it cannot be sent.
        """
        if fds:
            self._parcel = reply or b"", fds
        changed = self._written.changes(session, pool.snapshot())
        if reply is None:
            self._commit(changed)
            return
        if fds:
            self._write(self._phase, changed)
        else:
            self._outbox.put(reply)
            self._write(Replying(exact=True), changed)
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
            self._commit(None)
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

    def state_changed(self, session: Session, pool: WorkerPool) -> None:
        """The state has changed without a message. Inside of one, its end will say so, too."""
        if self.replying:
            self._write(self._phase, self._written.changes(session, pool.snapshot()))
        elif not self._under_way:
            self._commit(self._written.changes(session, pool.snapshot()))

    def held(self) -> dict[str, HasFileno]:
        """All that a successor needs, by name, for a handover."""
        return {
            **self._store.held(),
            CONNECTION: self.socket,
            STATE_FILE: self._state_file.fd,
            OUTBOX_READ: self._outbox.read_end,
            OUTBOX_WRITE: self._outbox.write_end,
        }

    def close(self) -> None:
        """The session is over: end the connection, and have all of it forgotten.

        Without its connection the rest is of no use to a successor.
        """
        # Copies of the socket may be in the store for a moment still.
        _hang_up(self.socket)
        self._fd_store.drop(CONNECTION)
        if not self._fd_store.goes_with_us:
            for name in (STATE_FILE, OUTBOX_READ, OUTBOX_WRITE):
                self._fd_store.notifier.remove(name)
            self._store.remove_all()
        self._drop_parcel()
        self.receiver.close()
        self._state_file.close()
        self._outbox.close()

    # Inside.

    def _commit(self, changed: Parts | None) -> None:
        """No message is under way."""
        self._write(Idle(), changed)
        self._store.remove_unused()

    def _part_comes(self) -> None:
        self._write(Receiving())

    def _write(self, phase: Phase, changed: Parts | None = None) -> None:
        try:
            self._state_file.write(phase, changed)
        except StateFull as error:
            raise CloseConnection(str(error)) from error
        self._phase = phase
        self._under_way = not isinstance(phase, Idle | Receiving)


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
