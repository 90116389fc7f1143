"""The shared forkserver, the keeper's end: a process that has imported all, and forks masters.

It holds nothing of any device. A master is a fork of it, by way of a process that ends at once, so
that it is the keeper's own child, as one that was executed would be. If it dies, no master does:
another is started for the masters to come.

    it ends by itself, or is killed     another after a pause from PAUSES_S, as long as they do so
    it is not ready after READY_S       it is killed
    it does not answer within FORK_S    it is killed
    renewal (new code)                  another is started; the old one goes once that is ready
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable

from .descriptors import Stored, hand_over
from .processes import described

NAME = "forkserver"
"""What its end of the socket is called."""
READY = b"ready"
"""What it says first."""
PAUSES_S = (0.1, 1.0, 5.0, 25.0, 60.0)
"""Pause before another one, by the number of those in a row that were of no use."""
READY_S = 60.0
"""Seconds in which it must be ready."""
FORK_S = 10.0
"""Seconds in which it must have forked a master; it may import a device type before that."""
SEND_S = 1.0
"""Seconds in which a master must take the next message."""
LASTING_S = 10.0
"""Seconds after which one that was ready so long begins a new row."""
USELESS_MOST = 2
"""Of those in a row that were of no use, after which masters are executed."""
ANSWER_BYTES = 64


class SharedForkserver:
    """The process, if there is one that is ready, and perhaps the next.

    `start` starts a process with its end of a socket, and returns its id; `say` shows a line.
    """

    def __init__(self, start: Callable[[int], int], say: Callable[[str], None]) -> None:
        self._start = start
        self._say = say
        self._now = _Process()
        self._next = _Process()
        self._start_at: float | None = 0.0
        self._useless = 0
        self._said = ""

    @property
    def ready(self) -> bool:
        """Masters can be forked."""
        return self._now.pid != 0

    @property
    def is_of_no_use(self) -> bool:
        """There is none, and two in a row have come to nothing."""
        return not self.ready and self._useless >= USELESS_MOST

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        return tuple(each.pid for each in (self._now, self._next) if each.pid)

    @property
    def coming(self) -> socket.socket | None:
        """Readable once the next one is ready, or has ended."""
        return self._next.channel

    def due(self) -> float | None:
        """Seconds until `tend` should be called, None: not for our sake."""
        at = self._next.ready_by if self._next.pid else self._start_at
        return None if at is None else at - time.monotonic()

    def tend(self) -> None:
        """Start one if it is time, kill one that is not ready in time."""
        now = time.monotonic()
        if self._next.pid and now >= self._next.ready_by:
            self._say(f"the shared forkserver is not ready in {READY_S:g} s, killing it")
            self._next.ready_by = now + READY_S
            os.kill(self._next.pid, signal.SIGKILL)
        elif self._start_at is not None and now >= self._start_at and not self._next.pid:
            self._launch()

    def renew(self) -> None:
        """Have another one, of the code that is installed now; this one serves until then."""
        if self._next.pid:
            os.kill(self._next.pid, signal.SIGKILL)
        self._start_at = time.monotonic()

    def _launch(self) -> None:
        self._start_at = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                pid = self._start(theirs.fileno())
        except OSError as error:
            self._try_again(f"no shared forkserver: {error.strerror}; trying again")
            return
        self._next = _Process(pid, ours, time.monotonic() + READY_S)

    def hear(self) -> None:
        """The next one says that it is ready: it is the one from now on."""
        channel = self._next.channel
        assert channel is not None
        if channel.recv(ANSWER_BYTES, socket.MSG_DONTWAIT) != READY:
            os.kill(self._next.pid, signal.SIGKILL)
            channel.close()
            self._next.channel = None
            return
        before, self._now, self._next = self._now, self._next, _Process()
        before.discard()
        self._now.ready_at = time.monotonic()
        channel.settimeout(FORK_S)

    def ended(self, pid: int, code: int) -> None:
        """One of `pids` has ended."""
        if pid == self._now.pid:
            if time.monotonic() - self._now.ready_at >= LASTING_S:
                self._useless, self._said = 0, ""
            self._now.close()
            self._now = _Process()
        else:
            self._next.close()
            self._next = _Process()
        if not self._next.pid:
            self._try_again(f"the shared forkserver ended ({described(code)}), starting another")

    def _try_again(self, text: str) -> None:
        if text != self._said:
            self._say(text)
        self._said = text
        pause = PAUSES_S[min(self._useless, len(PAUSES_S) - 1)]
        self._useless += 1
        self._start_at = time.monotonic() + pause

    def fork(self, file: str, environ: dict[str, str], stored: Stored) -> int:
        """Fork a master for a device file, with this in its environment beside ours, and what is
        stored: its process id. Raises OSError for no process.
        """
        channel = self._now.channel
        assert channel is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                order = json.dumps({"file": file, "environ": environ, "parent": os.getpid()})
                try:
                    socket.send_fds(channel, [order.encode()], [theirs.fileno()])
                    answer = int(channel.recv(ANSWER_BYTES) or b"0")
                except (OSError, ValueError):
                    answer = 0
            if not answer:
                os.kill(self._now.pid, signal.SIGKILL)  # its end is noted as any other
                raise OSError(0, "the shared forkserver does not answer")
            if answer < 0:
                raise OSError(-answer, os.strerror(-answer))
            ours.settimeout(SEND_S)
            try:
                hand_over(ours, stored)
            except OSError:
                os.kill(answer, signal.SIGKILL)  # and the end of a master leads to another
            return answer

    def discard(self) -> None:
        """Kill it: no master is wanted any more."""
        self._start_at = None
        self._now.discard()
        self._next.discard()
        self._now, self._next = _Process(), _Process()


class _Process:
    """One process; `pid` 0: none."""

    def __init__(
        self, pid: int = 0, channel: socket.socket | None = None, ready_by: float = 0.0
    ) -> None:
        self.pid = pid
        self.channel = channel
        self.ready_by = ready_by
        self.ready_at = 0.0

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def discard(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        self.close()
