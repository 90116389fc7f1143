"""The control process: one loop that listens, speaks vhost-user and carries out the session's
effects.

It never maps guest memory and never reads a ring. One front-end is served at a time; others wait in
the backlog.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from enum import IntEnum

from vuproc.chores import Chore, Meanwhile
from vuproc.errors import CloseConnection, ConnectionBroken, Disconnected, in_words
from vuproc.fd import Fd
from vuproc.handover.checkpoint import CONNECTION, Checkpoint, Lost, Resumed
from vuproc.handover.fd_store import FdStore
from vuproc.handover.resume import Decision
from vuproc.handover.sd_notify import HasFileno
from vuproc.listener import Source
from vuproc.pool.forkserver import CannotStart
from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import WorkerLost, WorkerSetupError
from vuproc.pool.worker_watch import WorkerWatch
from vuproc.remedies import SHARE_MEMORY
from vuproc.signals import Signals
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.vhost_user import effects, traffic
from vuproc.vhost_user.backend_channel import CLOSED, BackendChannel
from vuproc.vhost_user.effects import EffectFailed
from vuproc.vhost_user.session import Offer, Session
from vuproc.vhost_user.wire import Message

log = logging.getLogger("vuproc.master")

SILENCE_DEADLINE = 5.0
"""Seconds after which a connection that has said nothing no longer keeps another waiting."""
MESSAGES_PER_TURN = 64
"""Messages handled before signals and dying workers get their turn."""


class Phase(IntEnum):
    """Only ever rises."""

    SERVING = 0
    LAST_CONNECTION = 1
    STOPPING = 2


class Connection:
    """One front-end: its session, and the checkpoint of it, which has its socket."""

    def __init__(self, session: Session, checkpoint: Checkpoint) -> None:
        self.session = session
        self.checkpoint = checkpoint
        self.socket = checkpoint.socket
        self.receiver = checkpoint.receiver
        self.since = time.monotonic()
        self.spoken = False
        self.doubted = False
        self.channel: BackendChannel | None = None


class Master:
    """Serves one device to one front-end after the other."""

    def __init__(
        self,
        source: Source,
        offer: Offer,
        make_pool: Callable[[Master], WorkerPool],
        fd_store: FdStore,
        signals: Signals,
        *,
        exit_on_disconnect: bool = False,
    ) -> None:
        self._source = source
        self._signals = signals
        self._fd_store = fd_store
        self._offer = offer
        self._exit_on_disconnect = exit_on_disconnect
        self._phase = Phase.SERVING
        self._cut = False
        # Not epoll: what is registered there stays as long as anybody has the file open, and our
        # keeper has copies of the workers' pidfds. A dead worker's would be reported under the
        # number that its successor's got.
        self._selector = selectors.PollSelector()
        self._connection: Connection | None = None
        self._on_source: Callable[[], None] | None = None
        """What a front-end at the listening socket leads to; None: nobody polls that."""
        self._other_waits = False
        self._ended = ""
        self._next_accept = 0.0
        self._chores: list[Chore] = []
        self._on_request: dict[int, Callable[[], None]] = {}
        self._selector.register(signals, selectors.EVENT_READ, Meanwhile(self._signalled))
        self._waiting = False
        self._up = False
        self._put_off: list[int] = []
        self.on_cut: Callable[[], None] = lambda: None
        """Called when our end becomes urgent, in the middle of anything."""
        self.pool = make_pool(self)
        self._workers = WorkerWatch(self._selector, self.pool)
        signals.on_urgent = self._cut_short
        if signals.end_asked:
            self._cut_short()
        self.add_chore(self.pool)

    # Set up by `serve`.

    @property
    def selector(self) -> selectors.BaseSelector:
        """The poll set; what is registered has a callable without arguments as its data."""
        return self._selector

    @property
    def source(self) -> Source:
        """Where front-ends come from."""
        return self._source

    @property
    def session(self) -> Session | None:
        """The session of the front-end that is connected."""
        return None if self._connection is None else self._connection.session

    @property
    def other_waits(self) -> bool:
        """Whether a front-end waits for the one that is connected to leave."""
        return self._other_waits

    @property
    def ended(self) -> str:
        """Why we ended the last connection; "" if its front-end did."""
        return self._ended

    def on_signal(self, number: signal.Signals, action: Callable[[], None]) -> None:
        """Have a signal lead to something else than our end. Before `run`."""
        self._on_request[number] = action
        self._signals.catch(number)

    @property
    def waiting(self) -> bool:
        """A message, or a change of ours, waits for a worker: nothing else may be begun."""
        return self._waiting

    def wait_readable(self, number: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds until a descriptor is readable; whether it is.

        The service manager and whoever asks for the status get their answers meanwhile. Front-ends
        and workers do not, since something of theirs is under way.
        """
        deadline = time.monotonic() + timeout
        was_waiting, self._waiting = self._waiting, True
        try:
            while (left := deadline - time.monotonic()) > 0:
                # A worker that was replaced before this wait has closed its descriptors, whose
                # numbers an operator's connection may get.
                self._workers.update()
                with selectors.PollSelector() as selector:
                    selector.register(number, selectors.EVENT_READ, None)
                    for key in self._attended():
                        selector.register(key.fd, key.events, key.data)
                    due = self._fd_store.due()
                    ready = selector.select(left if due is None else min(left, due))
                self._fd_store.tend()
                for key, _ in ready:
                    if key.fd != number and self._is_current(key):
                        key.data()
                if any(key.fd == number for key, _ in ready):
                    return True
        finally:
            self._waiting = was_waiting
        return False

    def _attended(self) -> list[selectors.SelectorKey]:
        """What is looked after while something waits: operators only once there is a device."""
        return [
            key
            for key in self._selector.get_map().values()
            if isinstance(key.data, Meanwhile) and (self._up or key.fileobj is self._signals)
        ]

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        """Whether what is ready is still polled so: what came before it in this turn may have
        closed it.
        """
        now = self._selector.get_map().get(key.fd)
        return now is not None and now.data is key.data

    def add_chore(self, chore: Chore) -> None:
        """Have the loop look after something that is due now and then."""
        self._chores.append(chore)

    def held(self) -> dict[str, HasFileno]:
        """What a successor needs of the session, by name. Only between two messages."""
        return {} if self._connection is None else self._connection.checkpoint.held()

    def set_exit_on_disconnect(self, wanted: bool) -> None:
        """Whether the end of a connection is ours."""
        self._exit_on_disconnect = wanted

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again, if it wants to be told."""
        connection = self._connection
        if connection is None or connection.channel is None:
            return
        if connection.session.state.protocol_features & ProtocolFeature.CONFIG:
            connection.channel.config_changed()

    def revive(self, queue: int) -> str | None:
        """Have a broken ring served again; why not, if not."""
        refusal = self.pool.revive(queue)
        if refusal is None and self._connection is not None:
            log.info("queue %d: restarted by an operator", queue)
            self._connection.session.ring_revived(queue)
            self._connection.checkpoint.state_changed(self._connection.session, self.pool)
        return refusal

    # What the pool asks.

    def replay(self, queues: tuple[int, ...]) -> list[effects.Effect]:
        """The effects that bring a fresh worker of `queues` to the session's committed state."""
        if self._connection is None:
            return []
        return self._connection.session.replay(queues)

    def ring_broken(self, queue: int, cause: str) -> None:
        """A ring broke: log it, and show the driver that the device needs a reset where that was
        negotiated.
        """
        log.error("queue %d: broken: %s", queue, cause)
        connection = self._connection
        if connection is None:
            return
        tell = connection.session.ring_broken(queue, cause)
        connection.checkpoint.state_changed(connection.session, self.pool)
        if tell and connection.channel is not None:
            connection.channel.config_changed()

    # The loop.

    def run(self, on_ready: Callable[[], None], retire: Callable[[], None]) -> None:
        """Start the workers, then serve until a signal, or until the last front-end has gone.

        `retire` ends the workers of a predecessor, of whom none may touch a ring any more when it
        returns. Raises what it raises, and `WorkerSetupError` if the device cannot be set up in a
        worker.
        """
        self._signals.let_in()
        try:
            # Before the first front-end, which must not wait for imports.
            self.pool.start(succeeds=self._fd_store.succeeds)
        except (WorkerSetupError, WorkerLost, CannotStart):
            if self._cut:
                return
            raise
        retire()
        self._succeed()
        self.pool.standby.wait_ready()
        if not self._cut:
            self._source.open()
            self._up = True
            on_ready()
        self._signals.starting = False
        while self._phase < Phase.STOPPING:
            self._turn()

    def _turn(self) -> None:
        self._arm_source()
        self._arm_connection()
        self._workers.update()
        for key, _ in self._selector.select(self._patience()):
            if self._is_current(key):
                key.data()
            # It may have closed a worker's descriptors, whose numbers the next one may get anew.
            self._workers.update()
        self._enforce_deadlines()
        put_off, self._put_off = self._put_off, []
        for number in put_off:
            self._on_request[number]()
        for chore in self._chores:
            chore.tend()
        self._workers.update()
        if self._connection is None and self._on_source is None:
            self._accept()

    def _patience(self) -> float | None:
        """Seconds until something is due that no descriptor will announce."""
        now = time.monotonic()
        waits: list[float] = []
        waits.extend(due for chore in self._chores if (due := chore.due()) is not None)
        connection = self._connection
        if connection is None:
            if self._on_source is None:
                waits.append(self._next_accept - now)
        else:
            limit = self._limit(connection)
            if limit is not None:
                waits.append(limit - now)
        return max(0.0, min(waits)) if waits else None

    def _signalled(self) -> None:
        for number in self._signals.take():
            if number in self._on_request:
                if self._waiting:
                    self._put_off.append(number)
                else:
                    self._on_request[number]()
                continue
            log.info("received %s, stopping", signal.Signals(number).name)
            self._phase = Phase.STOPPING

    def _cut_short(self) -> None:
        """Our end is urgent: whatever waits for a worker waits no longer.

        Runs as a signal handler: in the middle of anything.
        """
        self._cut = True
        self._phase = Phase.STOPPING
        self.pool.abandon()
        self.on_cut()

    # Connections.

    def _arm_source(self) -> None:
        """Poll the listening socket for a front-end to serve; while one is served, for the first
        other one, which is noted. Those that wait cannot spin us.
        """
        wanted: Callable[[], None] | None = self._accept
        if self._connection is not None:
            wanted = None if self._other_waits else self._note_other
        number = self._source.fileno()
        if number is None or wanted == self._on_source:
            return
        if self._on_source is not None:
            self._selector.unregister(number)
        if wanted is not None:
            self._selector.register(number, selectors.EVENT_READ, wanted)
        self._on_source = wanted

    def _note_other(self) -> None:
        self._other_waits = True
        log.warning(
            "another front-end waits: one is served at a time, and this one goes first. For a "
            "hand-over between two VMMs (QEMU's cpr-transfer) start a second vuproc"
        )

    def _accept(self) -> None:
        if self._connection is not None or self._phase >= Phase.STOPPING:
            return
        if self._on_source is None and time.monotonic() < self._next_accept:
            return
        sock = self._source.accept()
        if sock is None:
            self._next_accept = time.monotonic() + self._source.delay()
            return
        self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        """A front-end is connected, and nothing was read from it."""
        session = Session(self._offer)
        try:
            self.pool.attach()
            checkpoint = Checkpoint.begin_session(self._fd_store, sock, session, self.pool)
        except OSError as error:
            log.error("front-end turned away: %s", in_words(error))
            self._fd_store.drop(CONNECTION)
            sock.close()
            return
        self._connection = Connection(session, checkpoint)
        self._selector.register(sock, selectors.EVENT_READ, self._ready)
        log.info("front-end connected")

    def _succeed(self) -> None:
        """Go on with the session of a predecessor, if it left one."""
        sock = Checkpoint.not_started(self._fd_store)
        if sock is not None:
            self._begin(sock)
            return
        try:
            resumed = Checkpoint.take_up(self._fd_store, self._offer)
        except Lost as error:
            log.error("the session of the last master is lost: %s", error)
            return
        if resumed is None:
            return
        connection = Connection(resumed.session, resumed.checkpoint)
        connection.spoken = True
        self._connection = connection
        self._selector.register(connection.socket, selectors.EVENT_READ, self._ready)
        try:
            self._go_on(connection, resumed)
        except (Disconnected, ConnectionBroken, CloseConnection, OSError) as error:
            self._disconnect(str(error), ours=not isinstance(error, Disconnected))

    def _go_on(self, connection: Connection, resumed: Resumed) -> None:
        state = resumed.session.state
        if resumed.decision is Decision.SEND_REST:
            connection.checkpoint.send_rest()
        if state.backend_channel is not None:
            self._replace_channel(connection, state.backend_channel)
        broken = {ring.index: ring.broken for ring in state.rings if ring.broken}
        self.pool.restore(resumed.pool, broken)
        log.info("went on with the session of the last master (%s)", resumed.decision.value)
        if resumed.message is not None:
            self._handle(connection, resumed.message, begun=resumed.begun)

    def _limit(self, connection: Connection) -> float | None:
        """The time by which this connection must have taken our answer, or sent (the rest of) a
        message.
        """
        if connection.checkpoint.deadline is not None:
            return connection.checkpoint.deadline
        if connection.receiver.deadline is not None:
            return connection.receiver.deadline
        return None if connection.spoken else connection.since + SILENCE_DEADLINE

    def _enforce_deadlines(self) -> None:
        connection = self._connection
        if connection is None:
            return
        limit = self._limit(connection)
        if limit is None or time.monotonic() < limit:
            return
        if connection.checkpoint.replying or connection.receiver.deadline is not None:
            self._ready()  # whoever waits says that it was for too long
        elif self._somebody_waits():
            # Silence is a right, but not at the expense of a front-end that waits.
            self._disconnect(f"silent for {SILENCE_DEADLINE:g} s while another waits", ours=True)
        else:
            connection.since = time.monotonic()

    def _somebody_waits(self) -> bool:
        number = self._source.fileno()
        if number is None:
            return False
        with selectors.PollSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            return bool(selector.select(0))

    def _arm_connection(self) -> None:
        """Poll for what the connection waits for: room for our answer, else a message."""
        connection = self._connection
        if connection is not None:
            replying = connection.checkpoint.replying
            event = selectors.EVENT_WRITE if replying else selectors.EVENT_READ
            self._selector.modify(connection.socket, event, self._ready)

    def _ready(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            connection = self._connection
            if connection is None:
                return
            try:
                if connection.checkpoint.replying:
                    connection.checkpoint.send_rest()
                if connection.checkpoint.replying:
                    return
                message = connection.receiver.receive()
                if message is None:
                    return
                connection.spoken = True
                self._handle(connection, connection.checkpoint.take(message))
            except (Disconnected, ConnectionBroken, CloseConnection) as error:
                self._disconnect(str(error), ours=not isinstance(error, Disconnected))
            except OSError as error:
                # The system has refused something, a descriptor perhaps: that is nobody else's end.
                self._disconnect(f"a message could not be applied: {in_words(error)}", ours=True)

    def _handle(self, connection: Connection, message: Message, *, begun: int = 0) -> None:
        """One message, applied fully before the next is read.

        `begun`: as many of its effects had been begun when a predecessor died.
        """
        if not log.isEnabledFor(logging.DEBUG):
            self._apply(connection, message, begun)
            return
        told, answer = traffic.message_line(message), "connection closed"
        started = time.monotonic()
        try:
            applied = self._apply(connection, message, begun)
            answer = traffic.answer_line(message, *applied)
        finally:
            log.debug("%s -> %s (%.2f ms)", told, answer, (time.monotonic() - started) * 1000)

    def _apply(
        self, connection: Connection, message: Message, begun: int
    ) -> tuple[bytes | None, int, str]:
        """Carry a message out and begin to answer it; for the log, the answer, how many descriptors
        it has, and why the message was refused.
        """
        step = connection.session.handle(message)
        results: list[object] = []
        for number, effect in enumerate(step.effects, 1):
            if number > begun:
                self.pool.clear_record(effect)
            connection.checkpoint.begin(number)
            results.append(self._perform(connection, effect))
            if isinstance(results[-1], EffectFailed):
                break
        try:
            reply = step.finish(results)
        finally:
            undone = len(results) > 1 and isinstance(results[-1], EffectFailed)
            self.pool.settled(undone=undone)
            if step.refused is not None:
                log.warning("refused %s: %s", message.name, step.refused)
            if step.doubt and not connection.doubted:
                connection.doubted = True
                log.warning("%s: %s", step.doubt, SHARE_MEMORY)
        fds = step.take_reply_fds()
        connection.checkpoint.applied(connection.session, self.pool, reply, fds)
        return reply, len(fds), step.refused or ""

    def _perform(self, connection: Connection, effect: effects.Effect) -> object:
        if isinstance(effect, effects.SetBackendChannel):
            return self._replace_channel(connection, effect.fd)
        return self.pool.perform(effect)

    def _replace_channel(self, connection: Connection, fd: Fd) -> EffectFailed | None:
        try:
            channel = BackendChannel(fd)
        except OSError as error:
            return EffectFailed(f"not a stream socket: {error.strerror}")
        self._close_channel(connection)
        self._workers.update()
        connection.channel = channel
        self._selector.register(channel, selectors.EVENT_READ, self._channel_readable)
        return None

    def _channel_readable(self) -> None:
        connection = self._connection
        if connection is None or connection.channel is None:
            return
        reason = connection.channel.stray()
        if reason is not None:
            level = logging.DEBUG if reason is CLOSED else logging.WARNING
            log.log(level, "back-end request channel ended: %s", reason)
            self._close_channel(connection)

    def _close_channel(self, connection: Connection) -> None:
        if connection.channel is not None:
            self._selector.unregister(connection.channel)
            connection.channel.close()
            connection.channel = None

    def _disconnect(self, reason: str, *, ours: bool = False) -> None:
        """End the connection: stop rings, drop guest memory, close descriptors.

        `ours`: not the front-end has ended it, and it may have no way to tell its user why.
        """
        connection = self._connection
        if connection is None:
            return
        log.log(logging.WARNING if ours else logging.INFO, "front-end disconnected: %s", reason)
        self._ended = reason if ours else ""
        for effect in connection.session.close():
            result = self.pool.perform_at_end(effect)
            if isinstance(result, EffectFailed):
                log.warning("%s at disconnect: %s", type(effect).__name__, result.reason)
        self._connection = None
        self._other_waits = False
        self.pool.settled(undone=False)
        self.pool.detach()
        self._close_channel(connection)
        self._selector.unregister(connection.socket)
        connection.checkpoint.close()
        connection.session.release()
        if self._exit_on_disconnect or self._source.exhausted():
            self._phase = max(self._phase, Phase.STOPPING)
        self._next_accept = time.monotonic() + self._source.delay()

    def close(self) -> None:
        """Drain, stop the workers, and leave nothing behind. After `run`, however that ended."""
        if self._cut:
            log.warning("workers are killed, not waited for; their requests stay in their records")
        self.pool.wind_down()
        self._disconnect("stopping")
        for chore in reversed(self._chores):
            chore.close()
        self._selector.close()
