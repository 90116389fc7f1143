"""One stream of a sound device: its state, and its transfers, which are done as its clock goes on.

A transfer is played when its time is over, and then completed. So that it is played once whoever
dies, a note says before it is completed which request it is and where the stream will be then
(32 bits): who finds the note asks whether the driver has seen the request (`Device.unfinished`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vuproc.devices.sound_format import Ability, Params
from vuproc.devices.sound_state import COMMANDS, OPEN, State, StreamState
from vuproc.spec.sound import RATES, TRANSFER_STATUS, SampleFormat, SoundRequest, SoundStatus

if TYPE_CHECKING:
    from vuproc.device import Timer
    from vuproc.devices.sound import Sound
    from vuproc.devices.sound_backend import Backend
    from vuproc.shm.request import Request

MOST_BYTES = 1 << 20
"""Bytes of sound in one transfer. Linux's are periods, of 64 KiB at most unless it is told so."""
STATUS_BYTES = TRANSFER_STATUS.size
_NS = 1_000_000_000
_NOTED = 1 << 63
_WORD = (1 << 32) - 1


class _Transfer(NamedTuple):
    request: Request
    size: int
    """Bytes of sound."""
    came: int
    """When, in nanoseconds; 0: before a worker died, so that the driver was not late."""


class Stream:
    """A stream. `number` is its id, `function` that of the PCM device it is a part of, `queue` the
    one of its transfers.
    """

    def __init__(
        self,
        device: Sound,
        number: int,
        *,
        function: int,
        queue: int,
        plays: bool,
        ability: Ability,
        backend: Backend,
        state: StreamState,
    ) -> None:
        self.number = number
        self.function = function
        self.queue = queue
        self.plays = plays
        self.ability = ability
        self._device = device
        self._backend = backend
        self._shared = state
        self._waiting: deque[_Transfer] = deque()
        self._old: set[int] = set()
        """Heads of transfers that a worker before us had waiting."""
        self._timer: Timer | None = None
        self._done = 0
        """When the last transfer was completed, in nanoseconds."""
        self._said = ""
        """What failed last."""
        if self.state in OPEN:
            # A worker before us had it open.
            self._does(self._open)
        if self.state is State.STARTED:
            self._does(backend.start)
            self._done = time.monotonic_ns()

    # What is in one word: state, format, rate and channels.

    @property
    def state(self) -> State:
        """How far the driver has come."""
        return State(self._shared.word & 0xFF)

    @property
    def params(self) -> Params | None:
        """What the driver has chosen, if it has."""
        word = int(self._shared.word)
        if not word:
            return None
        rate = RATES[word >> 16 & 0xFF]
        return Params(SampleFormat(word >> 8 & 0xFF), rate, word >> 24 & 0xFF)

    def _go_to(self, state: State) -> None:
        self._shared.word = (self._shared.word & ~0xFF) | state

    # What the driver asks for.

    def choose(self, format: int, rate: int, channels: int) -> bool:
        """SET_PARAMS, whatever the state: a driver that has come anew begins with it."""
        if self.ability.choose(format, rate, channels) is None:
            return False
        self._end()
        self._shared.word = State.SET | format << 8 | rate << 16 | channels << 24
        return True

    def command(self, code: SoundRequest, again: bool) -> SoundStatus:
        """One of COMMANDS. `again`: a worker that died may have done it already."""
        target, sources = COMMANDS[code]
        if again and self.state is target:
            return SoundStatus.OK
        if self.state not in sources:
            return SoundStatus.BAD_MSG
        match target:
            case State.PREPARED:
                if not self._does(self._open):
                    return SoundStatus.IO_ERR
            case State.STARTED:
                if not self._does(self._backend.start):
                    return SoundStatus.IO_ERR
                self._shared.due = time.monotonic_ns()
                self._done = 0
            case State.STOPPED:
                self._does(self._backend.stop)
                self._be_quiet()
            case State.RELEASED:
                self._end()
        self._go_to(target)
        self.go_on()
        return SoundStatus.OK

    def forget(self) -> None:
        """The driver is gone, and all transfers are."""
        self._end()
        self._shared.word = 0

    def close(self) -> None:
        """The worker ends."""
        self._does(self._backend.close)

    def _end(self) -> None:
        """Complete what waits, and let go of the back-end. The driver sees that before the answer
        of its command (5.14.6.6.5.1).
        """
        self._be_quiet()
        waiting = [each.request for each in self._waiting if not each.request.finished]
        self._waiting.clear()
        for request in waiting:
            answer(request, SoundStatus.OK)
        if waiting:
            self._device.publish(self.queue)
        self._does(self._backend.close)

    def _open(self) -> None:
        params = self.params
        assert params is not None
        self._backend.open(params)

    def _does(self, what: Callable[[], None]) -> bool:
        """Have the back-end do it; False, and a line in the log, if it does not."""
        try:
            what()
        except Exception as error:  # whatever a library for the card raises
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        """Say so, once: it may be so for each transfer that follows."""
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        if said != self._said:
            self._said = said
            self._device.log.error("stream %d: %s: %s", self.number, type(error).__name__, said)

    # Transfers.

    def settle(self, unfinished: set[int]) -> None:
        """Before the first transfer of a ring: whether the last one of a dead worker counts.

        `unfinished` is for all streams of the queue: whoever is given a transfer takes its head out
        of it, since the next one with that head is new.
        """
        note = int(self._shared.note)
        if note & _NOTED and note >> 32 & 0xFFFF not in unfinished:
            self._shared.position = note & _WORD
        self._shared.note = 0
        self._old = unfinished

    def add(self, request: Request, count: int) -> bool:
        """A transfer of so many bytes, in its turn; False if it makes no sense."""
        params = self.params
        if params is None or self.state not in OPEN:
            return False
        if not 0 <= count <= MOST_BYTES or count % params.frame_bytes:
            return False
        came = 0 if request.head in self._old else time.monotonic_ns()
        self._old.discard(request.head)
        self._waiting.append(_Transfer(request, count, came))
        return True

    def give_back(self) -> None:
        """Its queue is to stop: what waits comes again."""
        self._be_quiet()
        while self._waiting:
            request = self._waiting.popleft().request
            if not request.finished:  # as all are if the ring broke
                request.release()

    def _be_quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def go_on(self) -> None:
        """Do the transfers whose time has come, and come again for the next.

        Those that are late, as after a worker's death, do not come all at once, for the stream has
        stood still: a driver that counts in a circle, as Linux's does, takes a buffer that was
        played as a whole since it last looked for one of which nothing was played, and waits for
        ever. A card may take them faster, but leaves half of their time between them, too.
        """
        self._be_quiet()
        while self._waiting and self.state is State.STARTED:
            transfer = self._waiting[0]
            if transfer.request.finished:
                self._waiting.popleft()
                continue
            # Behind the one before it, or since it came if the driver was late: then the stream has
            # waited for it.
            params = self.params
            assert params is not None
            began = max(int(self._shared.due), transfer.came)
            lasts = transfer.size * _NS // params.byte_rate
            due, now = began + lasts, time.monotonic_ns()
            wait = self._backend.wait(transfer.size)
            if wait is None:
                wait = (due - now) / _NS
            wait = max(wait, (self._done + lasts // 2 - now) / _NS)
            if wait > 0:
                self._timer = self._device.call_later(wait, self.go_on)
                return
            self._waiting.popleft()
            self._move(transfer)
            self._shared.due = due if now - due < lasts else now
            self._done = time.monotonic_ns()

    def _move(self, transfer: _Transfer) -> None:
        """Play or record it, and complete it."""
        request, count = transfer.request, transfer.size
        status, data, end = SoundStatus.OK, b"", int(self._shared.position)
        try:
            if self.plays:
                data = request.read(count)
                self._device.played(self.number, data)
                end = self._backend.play(end, data)
                count = 0
            else:
                data, end = self._record(end, count)
            self._said = ""
        except Exception as error:
            # Of a hook, too: the guest is to go on, whatever an author has done.
            self._failed(error)
            status, count = SoundStatus.IO_ERR, 0
        self._shared.note = _NOTED | request.head << 32 | end
        try:
            if count:
                request.write(data)
            answer(request, status, count, self._backend.latency)
            self._device.publish(self.queue)
        except Exception:
            self._shared.note = 0  # the ring is gone: it was not seen
            raise
        self._shared.position = end
        self._shared.note = 0

    def _record(self, position: int, count: int) -> tuple[bytes, int]:
        data = self._device.captured(self.number, count)
        if data is None:
            return self._backend.record(position, count)
        assert self.params is not None
        return data[:count] + self.params.silence(count - len(data)), position


def answer(request: Request, status: SoundStatus, count: int = 0, latency: int = 0) -> None:
    """Complete a transfer of which `count` bytes were recorded. Without room for a status the
    driver hears nothing.
    """
    if request.writable_total < STATUS_BYTES:
        request.finish(0)
        return
    request.put(-STATUS_BYTES, TRANSFER_STATUS.pack(status=status, latency_bytes=latency))
    request.finish(count + STATUS_BYTES)
