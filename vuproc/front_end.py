"""One front-end that is connected: its messages, the answers to them, and the end."""

from __future__ import annotations

import logging
import select
import selectors
import time

from vuproc import events
from vuproc.errors import CloseConnection, ConnectionBroken, Disconnected, in_words
from vuproc.fd import Fd
from vuproc.handover.checkpoint import Checkpoint, Resumed
from vuproc.handover.resume import Decision
from vuproc.object_desk import ObjectDesk
from vuproc.poll_set import PollSet
from vuproc.pool.pool import WorkerPool
from vuproc.pool.slots import AskedShmem
from vuproc.remedies import SHARE_MEMORY
from vuproc.shmem_desk import ShmemDesk
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.translation_desk import TranslationDesk
from vuproc.vhost_user import traffic
from vuproc.vhost_user.backend_channel import BackendChannel
from vuproc.vhost_user.effects import Effect, EffectFailed, SetBackendChannel
from vuproc.vhost_user.inband_calls import InbandCalls
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.wire import Message
from vuproc.workers.control import ConfigSays, Missing, RingBroken

log = logging.getLogger("vuproc.master")

SILENCE_DEADLINE = 5.0
"""Seconds after which a connection that has said nothing no longer keeps another waiting."""
MESSAGES_PER_TURN = 64
"""Messages handled before signals and dying workers get their turn."""

ENDS = (Disconnected, ConnectionBroken, CloseConnection, OSError)
"""What handling a message may raise; all of them end the connection."""


class FrontEnd:
    """The conversation with one front-end, carried out on the workers of `pool`."""

    def __init__(
        self, session: Session, checkpoint: Checkpoint, pool: WorkerPool, polls: PollSet
    ) -> None:
        self.session = session
        self.checkpoint = checkpoint
        self.ended: BaseException | None = None
        """What has ended the connection: whoever calls `ready` is to `close` it then."""
        self._pool = pool
        self._polls = polls
        self.socket = checkpoint.socket
        self._receiver = checkpoint.receiver
        self._since = time.monotonic()
        self._spoken = False
        self._doubted = False
        self._channel: BackendChannel | None = None
        self._calls = InbandCalls(polls, self._call)
        self._objects = ObjectDesk(pool, lambda: self._channel)
        self._shmem = ShmemDesk(
            pool,
            lambda: self._channel,
            lambda: self.checkpoint.state_changed(self.session, self._pool),
        )
        self._applying = False
        self._translations = TranslationDesk(
            pool, lambda: self._channel, lambda: self.session.state
        )

    def go_on(self, resumed: Resumed) -> None:
        """Go on where a predecessor was. Raises one of `ENDS`."""
        self._spoken = True
        state = resumed.session.state
        if resumed.decision is Decision.SEND_REST:
            self.checkpoint.send_rest()
        if state.backend_channel is not None:
            self._replace_channel(state.backend_channel, resumed=True)
        self._calls.follow(state)
        self._pool.restore(state, resumed.pool)
        self._objects.follow(state)
        self._shmem.follow(state)
        log.info("went on with the session of the last master (%s)", resumed.decision.value)
        if resumed.message is not None:
            self._handle(resumed.message, begun=resumed.begun)

    # When it is due.

    @property
    def waits_for(self) -> int:
        """The event of the socket that is worth a call of `ready`: room for our answer, else a
        message.
        """
        replying = self.checkpoint.replying
        return selectors.EVENT_WRITE if replying else selectors.EVENT_READ

    def limit(self) -> float | None:
        """The time by which this connection must have taken our answer, or sent (the rest of) a
        message; None: there is none such.
        """
        if self.checkpoint.deadline is not None:
            return self.checkpoint.deadline
        if self._receiver.deadline is not None:
            return self._receiver.deadline
        return None if self._spoken else self._since + SILENCE_DEADLINE

    @property
    def is_gone(self) -> bool:
        """It has closed its end, whatever it has sent before. May be asked at any time."""
        poller = select.poll()
        poller.register(self.socket, select.POLLRDHUP)
        return bool(poller.poll(0))

    @property
    def is_silent(self) -> bool:
        """It has said nothing yet and owes nothing: silence is a right."""
        return not self.checkpoint.replying and self._receiver.deadline is None

    def wait_on(self) -> None:
        """Give it as long again."""
        self._since = time.monotonic()

    # Messages.

    def ready(self) -> None:
        """Handle what has come, one message after the other."""
        for _ in range(MESSAGES_PER_TURN):
            if self.ended is not None:
                return
            try:
                if self.checkpoint.replying:
                    self.checkpoint.send_rest()
                if self.checkpoint.replying:
                    return
                message = self._receiver.receive()
                if message is None:
                    return
                self._spoken = True
                self._handle(self.checkpoint.take(message))
            except ENDS as error:
                self.ended = error

    def _handle(self, message: Message, *, begun: int = 0) -> None:
        """One message, applied fully before the next is read.

        `begun`: as many of its effects had been begun when a predecessor died.
        """
        if not log.isEnabledFor(logging.DEBUG):
            self._apply(message, begun)
            return
        line, answer = traffic.message_line(message), "connection closed"
        started = time.monotonic()
        try:
            applied = self._apply(message, begun)
            answer = traffic.answer_line(message, *applied)
        finally:
            log.debug("%s -> %s (%.2f ms)", line, answer, (time.monotonic() - started) * 1000)

    def _apply(self, message: Message, begun: int) -> tuple[bytes | None, int, str]:
        """Carry a message out and begin to answer it; for the log, the answer, how many descriptors
        it has, and why the message was refused.
        """
        self._applying = True
        try:
            return self._carry_out(message, begun)
        finally:
            self._applying = False
            self._shmem.follow(self.session.state)

    def _carry_out(self, message: Message, begun: int) -> tuple[bytes | None, int, str]:
        step = self.session.handle(message)
        results: list[object] = []
        for number, effect in enumerate(step.effects, 1):
            if number > begun:
                self._pool.clear_record(effect)
            self.checkpoint.begin(number)
            if number <= begun and not effect.repeatable:
                results.append(EffectFailed("a master died over it, and it cannot be done again"))
            else:
                results.append(self._perform(effect))
            if isinstance(results[-1], EffectFailed):
                break
        try:
            reply = step.finish(results)
        finally:
            # Whatever the reason: some workers have done what is not in the state.
            carried_out = any(not isinstance(result, EffectFailed) for result in results)
            undone = step.refused is not None and carried_out
            self._pool.settled(self.session.state, undone=undone)
            self._calls.follow(self.session.state)
            self._objects.follow(self.session.state)
            self._translations.follow()
            self.note_news()
            if step.refused is not None:
                log.warning("refused %s: %s", message.name, step.refused)
            if step.doubt and not self._doubted:
                self._doubted = True
                log.warning("%s: %s", step.doubt, SHARE_MEMORY)
        fds = step.take_reply_fds()
        self.checkpoint.applied(self.session, self._pool, reply, fds)
        return reply, len(fds), step.refused or ""

    def _perform(self, effect: Effect) -> object:
        if isinstance(effect, SetBackendChannel):
            return self._replace_channel(effect.fd)
        result = self._pool.perform(effect)
        self.note_news()
        return result

    # What the device has to say.

    def note_news(self) -> None:
        """Take note of the rings that have broken: the driver is shown that the device needs a
        reset, where that was negotiated. And of changes of the configuration space: the driver is
        told to read it again.
        """
        for news in self._pool.take_news():
            match news:
                case RingBroken(queue=queue, cause=cause):
                    events.publish(events.ring_broken(queue, cause))
                    self._tell_broken(queue)
                    self._state_changed(self.session.ring_broken(queue, cause))
                case ConfigSays():
                    self.checkpoint.state_changed(self.session, self._pool)
                    self.config_changed()
                case AskedShmem():
                    self._shmem.ask(news)
                case Missing() as missing:
                    self._translations.ask(missing)
                case ask:
                    self.checkpoint.state_changed(self.session, self._pool)
                    self._objects.ask(ask, self.session.state)
        self._objects.deliver()
        self._pool.deliver()
        if not self._applying:
            self._shmem.follow(self.session.state)

    def ring_revived(self, queue: int) -> None:
        """A broken ring is served again, at an operator's wish."""
        self._state_changed(self.session.ring_revived(queue))

    def _state_changed(self, config_changed: bool) -> None:
        self._pool.history.state = self.session.state
        self.checkpoint.state_changed(self.session, self._pool)
        if config_changed and self._channel is not None:
            self._channel.config_changed()

    def config_changed(self) -> None:
        """Tell the front-end to read the configuration space again, if it wants to be told."""
        wanted = self.session.state.protocol_features & ProtocolFeature.CONFIG
        if self._channel is not None and wanted:
            self._channel.config_changed()

    # The back-end channel.

    def _replace_channel(self, fd: Fd, *, resumed: bool = False) -> EffectFailed | None:
        try:
            channel = BackendChannel(fd, self._polls, resumed=resumed)
        except OSError as error:
            return EffectFailed(f"not a stream socket: {error.strerror}")
        self._close_channel()
        self._channel = channel
        self._objects.channel_changed()
        return None

    def _call(self, ring: int) -> None:
        if self._channel is not None:
            self._channel.call(ring)

    def _tell_broken(self, ring: int) -> None:
        """In-band, of a ring without an error descriptor: its worker has nothing to say it by."""
        vring = self.session.state.rings[ring]
        if self._channel is not None and vring.bells is not None and vring.err is None:
            self._channel.err(ring)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # The end.

    def end_in_words(self) -> tuple[str, bool]:
        """Why the connection ends, and whether that is ours and not the front-end's doing."""
        match self.ended:
            case OSError() as error:
                # The system has refused something, a descriptor perhaps: that is nobody's end.
                return f"a message could not be applied: {in_words(error)}", True
            case None:
                return "", True
            case error:
                return str(error), not isinstance(error, Disconnected)

    def close(self) -> None:
        """Stop rings, drop guest memory, close descriptors."""
        for effect in self.session.close():
            result = self._pool.perform_at_end(effect)
            self.note_news()
            if isinstance(result, EffectFailed):
                log.warning("%s at disconnect: %s", type(effect).__name__, result.reason)
        self._calls.close()
        self._objects.close()
        self._shmem.close()
        self._translations.close()
        self._pool.detach()
        self._close_channel()
        self.checkpoint.close()
        self.session.release()
