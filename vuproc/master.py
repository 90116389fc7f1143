"""The control process: one loop that listens, and has one front-end after the other served.

It never maps guest memory and never reads a ring. One front-end is served at a time; others wait in
the backlog.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from math import inf

from vuproc import events
from vuproc.arrivals import Arrivals
from vuproc.chores import Chore
from vuproc.errors import in_words
from vuproc.fd import HasFileno
from vuproc.front_end import ENDS, SILENCE_DEADLINE, FrontEnd
from vuproc.handover.checkpoint import CONNECTION, Checkpoint
from vuproc.handover.fd_store import FdStore
from vuproc.handover.session_snapshot import Lost
from vuproc.listener import Source
from vuproc.poll_set import PollSet
from vuproc.pool.forkserver import CannotStart
from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import WorkerLost, WorkerSetupError
from vuproc.pool.slots import AskedShmem
from vuproc.pool.watchdog import Watchdog
from vuproc.pool.worker_watch import WorkerWatch
from vuproc.shmem_desk import refuse
from vuproc.signals import Requests, Signals
from vuproc.vhost_user.session import Offer, Session
from vuproc.workers.control import RingBroken

log = logging.getLogger("vuproc.master")


class Phase(IntEnum):
    """Only ever rises."""

    SERVING = 0
    LAST_CONNECTION = 1
    STOPPING = 2


class Master:
    """Serves one device to one front-end after the other."""

    def __init__(
        self,
        source: Source,
        offer: Offer,
        pool: WorkerPool,
        fd_store: FdStore,
        signals: Signals,
        polls: PollSet,
        *,
        exit_on_disconnect: bool = False,
    ) -> None:
        self.pool = pool
        self.on_cut: Callable[[], None] = lambda: None
        """Called when our end becomes urgent, in the middle of anything."""
        self._signals = signals
        self._fd_store = fd_store
        self._offer = offer
        self._polls = polls
        self._exit_on_disconnect = exit_on_disconnect
        self._phase = Phase.SERVING
        self._cut = False
        self._front_end: FrontEnd | None = None
        self._arrivals = Arrivals(source, polls, self._accept)
        self._ended = ""
        self.stopped_by = ""
        """Why the loop has ended, in words."""
        self._chores: list[Chore] = []
        self._watchdog: Watchdog | None = None
        self._requests = Requests(signals)
        self._watch = WorkerWatch(polls.selector, pool)
        polls.refresh = self._watch.update
        polls.tend = self._tend_fd_store
        polls.add(signals.fileno(), self._signalled, always=True)
        signals.on_urgent = self._cut_short
        if signals.end_asked:
            self._cut_short()
        self.add_chore(pool)

    # Set up by `serve`.

    @property
    def selector(self) -> selectors.BaseSelector:
        """The poll set; what is registered has a callable without arguments as its data."""
        return self._polls.selector

    @property
    def source(self) -> Source:
        """Where front-ends come from."""
        return self._arrivals.source

    @property
    def session(self) -> Session | None:
        """The session of the front-end that is connected."""
        return None if self._front_end is None else self._front_end.session

    @property
    def front_end_is_there(self) -> bool:
        """Whether one is connected, and has not closed its end."""
        return self._front_end is not None and not self._front_end.is_gone

    @property
    def other_waits(self) -> bool:
        """Whether a front-end waits for the one that is connected to leave."""
        return self._arrivals.other_waits

    @property
    def ended(self) -> str:
        """Why we ended the last connection; "" if its front-end did."""
        return self._ended

    @property
    def waiting(self) -> bool:
        """A message, or a change of ours, waits for a worker: nothing else may be begun."""
        return self._polls.waiting

    def on_signal(self, number: signal.Signals, action: Callable[[], None]) -> None:
        """Have a signal lead to something else than our end. Before `run`."""
        self._requests.on(number, action)

    def add_chore(self, chore: Chore) -> None:
        """Have the loop look after something that is due now and then."""
        self._chores.append(chore)

    def watch_by(self, watchdog: Watchdog) -> None:
        """Have it look after the workers: a chore that most often finds nothing to do."""
        self._watchdog = watchdog
        self.add_chore(watchdog)

    def held(self) -> dict[str, HasFileno]:
        """What a successor needs of the session, by name. Only between two messages."""
        return {} if self._front_end is None else self._front_end.checkpoint.held()

    def set_exit_on_disconnect(self, wanted: bool) -> None:
        """Whether the end of a connection is ours."""
        self._exit_on_disconnect = wanted

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again, if it wants to be told."""
        if self._front_end is not None:
            self._front_end.config_changed()

    def revive(self, queue: int) -> str | None:
        """Have a broken ring served again; why not, if not."""
        refusal = self.pool.revive(queue)
        if refusal is None and self._front_end is not None:
            events.publish(events.QueueRestarted(queue=queue))
            self._front_end.ring_revived(queue)
        return refusal

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
        self.pool.slots.standby.wait_ready()
        if not self._cut:
            self._arrivals.source.open()
            self._polls.attends_operators = True
            on_ready()
        self._signals.starting = False
        while self._phase < Phase.STOPPING:
            self._turn()

    def _turn(self) -> None:
        front_end = self._front_end
        self._arrivals.arm(serving=front_end is not None)
        if front_end is not None:
            self._polls.selector.modify(front_end.socket, front_end.waits_for, self._ready)
        self._wait()
        # Once more: a signal that came while descriptors were looked at is not among them, and is
        # to be known before what it forbids begins.
        self._signalled()
        self._note_news()
        self._enforce_deadlines()
        if self._phase >= Phase.STOPPING:
            return  # what waited for the end of a session is not to begin now
        self._requests.catch_up()
        for chore in self._chores:
            chore.tend()
        self._note_news()
        self._polls.refresh()
        if self._front_end is None and not self._arrivals.polled:
            self._accept()

    def _wait(self) -> None:
        """Until there is something to do; what descriptors announce is done."""
        watchdog = self._watchdog
        until = self._until([chore for chore in self._chores if chore is not watchdog])
        while True:
            look = None if watchdog is None else watchdog.due()
            wait = max(0.0, until - time.monotonic())
            if look is not None:
                wait = min(wait, look)
            busy = self._polls.turn(None if wait == inf else wait)
            # A whole turn for a look at idle workers would be most of what an idle device does.
            if busy or watchdog is None or not watchdog.look_at_idle():
                return

    def _until(self, chores: Sequence[Chore]) -> float:
        """When something is due that no descriptor will announce (time.monotonic)."""
        waits = [due for chore in chores if (due := chore.due()) is not None]
        if self._front_end is None:
            if not self._arrivals.polled:
                waits.append(self._arrivals.due())
        else:
            limit = self._front_end.limit()
            if limit is not None:
                waits.append(limit - time.monotonic())
        return time.monotonic() + min(waits, default=inf)

    def _note_news(self) -> None:
        """Rings have broken, perhaps."""
        if self._front_end is not None:
            self._front_end.note_news()
        else:
            for news in self.pool.take_news():
                match news:
                    case RingBroken(queue=queue, cause=cause):
                        events.publish(events.ring_broken(queue, cause))
                    case AskedShmem():
                        refuse(self.pool, news)
            self.pool.deliver()

    def _tend_fd_store(self) -> float | None:
        self._fd_store.tend()
        return self._fd_store.due()

    def _signalled(self) -> None:
        ending = self._requests.hear(busy=self.waiting)
        if ending is not None:
            self.stopped_by = f"received {ending.name}"
            log.info("%s, stopping", self.stopped_by)
            self._phase = Phase.STOPPING

    def _cut_short(self) -> None:
        """Our end is urgent: whatever waits for a worker waits no longer.

        Runs as a signal handler: in the middle of anything.
        """
        self._cut = True
        self._phase = Phase.STOPPING
        self.pool.abandon()
        self.on_cut()

    # The front-end that is served.

    def _accept(self) -> None:
        if self._front_end is None and self._phase < Phase.STOPPING:
            sock = self._arrivals.next()
            if sock is not None:
                self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        """A front-end is connected, and nothing was read from it."""
        session = Session(self._offer)
        try:
            self.pool.attach(session.state)
            checkpoint = Checkpoint.begin_session(self._fd_store, sock, session, self.pool)
        except OSError as error:
            log.error("front-end turned away: %s", in_words(error))
            self._fd_store.drop(CONNECTION)
            sock.close()
            return
        self._serve(FrontEnd(session, checkpoint, self.pool, self._polls))
        events.publish(events.Connected())

    def _serve(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._polls.add(front_end.socket.fileno(), self._ready)

    def _succeed(self) -> None:
        """Go on with the session of a predecessor, if it left one."""
        sock = Checkpoint.not_started(self._fd_store)
        resumed = None
        if sock is None:
            try:
                resumed = Checkpoint.resume(self._fd_store, self._offer)
            except Lost as error:
                log.error("the session of the last master is lost: %s", error)
        if resumed is None:
            if self._fd_store.succeeds:
                # Its session is over, which none of its workers may have heard.
                self.pool.detach()
            if sock is not None:
                self._begin(sock)
            return
        front_end = FrontEnd(resumed.session, resumed.checkpoint, self.pool, self._polls)
        self._serve(front_end)
        try:
            front_end.go_on(resumed)
        except ENDS as error:
            front_end.ended = error
            self._disconnect(*front_end.end_in_words())

    def _ready(self) -> None:
        front_end = self._front_end
        if front_end is not None:
            front_end.ready()
            if front_end.ended is not None:
                self._disconnect(*front_end.end_in_words())

    def _enforce_deadlines(self) -> None:
        front_end = self._front_end
        limit = None if front_end is None else front_end.limit()
        if front_end is None or limit is None or time.monotonic() < limit:
            return
        if not front_end.is_silent:
            self._ready()  # whoever waits says that it was for too long
        elif self._arrivals.somebody_waits():
            # Silence is a right, but not at the expense of a front-end that waits.
            self._disconnect(f"silent for {SILENCE_DEADLINE:g} s while another waits", ours=True)
        else:
            front_end.wait_on()

    def _disconnect(self, reason: str, ours: bool) -> None:
        """End the connection.

        `ours`: not the front-end has ended it, and it may have no way to tell its user why.
        """
        front_end = self._front_end
        if front_end is None:
            return
        events.publish(events.Disconnected(reason=events.shown(reason), ours=ours))
        self._ended = reason if ours else ""
        self._polls.selector.unregister(front_end.socket)
        front_end.close()
        self._front_end = None
        if self._exit_on_disconnect or self._arrivals.source.exhausted():
            self.stopped_by = self.stopped_by or f"the front-end is gone: {reason}"
            self._phase = max(self._phase, Phase.STOPPING)
        self._arrivals.pause()

    def close(self) -> None:
        """Drain, stop the workers, and leave nothing behind. After `run`, however that ended."""
        if self._cut:
            log.warning("workers are killed, not waited for; their requests stay in their records")
        self.pool.slots.wind_down()
        self._fd_store.end()
        self._disconnect("stopping", ours=False)
        for chore in reversed(self._chores):
            chore.close()
        self._watch.close()
        self._polls.close()
