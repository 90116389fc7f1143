"""The master's view of one worker process: start it, command it, see it die, replace it.

A worker that does not answer in time, or answers what it should not, is killed; `WorkerLost` says
so to the caller, who replaces it. No second worker is started for the same queues before the pidfd
of the first is readable.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from vuproc import texts
from vuproc.asks import Ask
from vuproc.errors import VuprocError
from vuproc.pool.ending_process import EndingProcess
from vuproc.pool.forkserver import (
    ATTENTIVE_S,
    CannotStart,
    Forkserver,
    poll_until_readable,
)
from vuproc.vhost_user.effects import OpenUserfault, StartRing
from vuproc.vhost_user.traffic import CommandLog
from vuproc.workers import control
from vuproc.workers.channel import TOGETHER_MOST, ChannelError, TooLarge
from vuproc.workers.control import (
    CONFIG_QUEUE,
    AnyOrder,
    Command,
    ConfigSays,
    Done,
    Failed,
    LockedIn,
    MasterChannel,
    Missing,
    RingBroken,
    Said,
    master_end,
)

COMMAND_DEADLINE = 2.0
"""Seconds a worker has to carry out a command before it is killed and replaced. While the device's
own code is at it, in a hook, it has the device file's `hook_timeout`.
"""
STOP_DEADLINE = 3.0
"""Seconds a worker has to finish what is in flight before its ring stops; then it is killed."""
POSTCOPY_DEADLINE = 600.0
"""Seconds a worker has for anything while pages of guest memory are missing: one that it waits for
comes over a network, which may fail for a while, and no other worker could take its place.
"""
TRANSFER_DEADLINE = 5.0
"""Seconds a worker has to end the transfer of a state: more than it gives the front-end for its
part (`state_transfer.CHECK_S`).
"""
EXIT_DEADLINE = 5.0
"""Seconds a worker has to leave at our own end."""
REPORTS_PER_TURN = 256
"""What a worker says unasked that is heard before deadlines and others get their turn."""
END_GRACE = 0.25
"""Seconds in which a worker that is lost may end by itself, before it is killed. One that is dying
is waited for no longer than it takes, which on a busy machine may be a while.
"""
UNANSWERED_MOST = 32
"""Commands that a fresh worker is given before it has answered the first: both directions of the
channel hold that many.
"""


class WorkerHost(Struct):
    """What every worker's end in the master uses of its surroundings."""

    forkserver: Forkserver
    on_command: Callable[[int], None]
    """Follows each command to the worker of that queue, which may be busy with requests."""
    hooks: Callable[[int], int]
    """A queue's word of hooks: odd while its worker is inside one of the device's (counters)."""
    hook_timeout: float
    """Seconds that a hook may take, and so may the imports of the device's code (device file)."""
    in_postcopy: Callable[[], bool] = lambda: False
    """Whether a page that a worker touches may be missing, and come later."""
    wait: Callable[[int, float], bool] = poll_until_readable
    """Waits until a descriptor is readable, or for so many seconds; whether it is."""


class WorkerLost(VuprocError):
    """The worker died, fell silent or broke the channel's rules; `cause` says which."""

    def __init__(self, queues: tuple[int, ...], pid: int, cause: str) -> None:
        super().__init__(f"worker {pid} of {name_queues(queues)}: {cause}")
        self.cause = cause


class WorkerSetupError(VuprocError):
    """The device could not be set up in its worker: the author's or the operator's mistake."""


class WorkerRefused(VuprocError):
    """The worker refused a command and changed nothing."""


class _Unwaited(Struct, frozen=True):
    """A command whose answer nobody waits for. `setup`: it is the device's set-up."""

    serial: int
    order: AnyOrder
    setup: bool


class WorkerProcess(EndingProcess):
    """One worker process and its control channel: a standby until `assign` gives it its queues.

    `on_report` gets what it says unasked.
    """

    def __init__(
        self,
        host: WorkerHost,
        prepare: control.Prepare,
        on_report: Callable[[Said], None],
    ) -> None:
        """Start the process and have it prepare; does not wait for that. Raises `CannotStart`."""
        self.queues: tuple[int, ...] = ()
        self.number = -1
        """Which of the device's workers it is, counted from the first."""
        self.on_unsettled: Callable[[], None] = lambda: None
        """Called when it gets something to do that nobody waits for: it may be late with that."""
        self._host = host
        self._on_report = on_report
        self._since = 0.0
        self._asked_at = 0.0
        self._serial = 0
        self._gives_file = False
        """The command given last is answered with a descriptor."""
        self._log = CommandLog()
        self._backlog: deque[AnyOrder] = deque()
        self._unanswered: deque[_Unwaited] = deque()
        started = host.forkserver.start()
        self._channel: MasterChannel = master_end(started.control)
        super().__init__(started.process, started.stack)
        try:
            self._post_unwaited(prepare, setup=True)
        except WorkerLost as error:
            self.kill()
            self.close()
            raise CannotStart(f"worker {self.pid} died at once") from error

    # On its way to the session's state.

    def assign(self, queues: tuple[int, ...], *, recovered: bool, ahead: bool = False) -> None:
        """Give the standby its queues, once; it need not have prepared. Raises `WorkerLost`.

        `recovered`: another worker has served them before. `ahead`: it is not their turn yet.
        """
        self.queues = queues
        self._post_unwaited(control.Assign(queues, recovered, ahead), setup=True)

    def help(self) -> None:
        """Have the standby be the device's helper, instead. Raises `WorkerLost`."""
        self._post_unwaited(control.Help(), setup=True)

    def catch_up(self, orders: Iterable[AnyOrder]) -> None:
        """Give orders whose answers nobody waits for, as its channel takes them.

        Their descriptors are borrowed until it is `ready`. Raises `WorkerLost`.
        """
        self._backlog.extend(orders)
        self._post_backlog()

    @property
    def ready(self) -> bool:
        """It has done all that it was told without anybody waiting for it."""
        return not self._unanswered

    @property
    def setting_up(self) -> bool:
        """The device's own code is at it, and the session has to wait."""
        return any(command.setup for command in self._unanswered)

    @property
    def overdue(self) -> float | None:
        """Seconds until it has taken too long for its next answer; None if it is ready."""
        if self.ready:
            return None
        return max(0.0, self._since + self._allowed(self._patience) - time.monotonic())

    def settle(self) -> None:
        """Wait until it is ready. Raises `WorkerSetupError` or `WorkerLost`."""
        while not self.ready:
            self._take_unwaited(self._answer(self._since, self._patience))

    @property
    def _patience(self) -> float:
        """Seconds for the first of the answers that nobody waits for."""
        return self._host.hook_timeout if self._unanswered[0].setup else COMMAND_DEADLINE

    def _allowed(self, timeout: float) -> float:
        """Seconds for an answer: `timeout`, or more while the device's own code is at it, or a page
        may be missing.
        """
        if self._host.in_postcopy():
            timeout = max(timeout, POSTCOPY_DEADLINE)
        in_hook = any(self._host.hooks(queue) % 2 for queue in self.queues)
        return max(timeout, self._host.hook_timeout) if in_hook else timeout

    def _post_unwaited(self, *orders: AnyOrder, setup: bool = False) -> None:
        if self.ready:
            self._since = time.monotonic()
            self.on_unsettled()
        first = self._post_together(orders)
        self._unanswered.extend(
            _Unwaited(serial, order, setup) for serial, order in enumerate(orders, first)
        )

    def _post_backlog(self) -> None:
        while room := min(UNANSWERED_MOST - len(self._unanswered), len(self._backlog)):
            together = [self._backlog.popleft()]
            # A ring that has started is served before what follows is looked at.
            while len(together) < min(room, TOGETHER_MOST) and not isinstance(
                together[-1], StartRing
            ):
                together.append(self._backlog.popleft())
            self._post_unwaited(*together)

    def _take_unwaited(self, answer: Done | Failed) -> None:
        """The answer to the first of the commands that nobody waits for."""
        if not self._unanswered or answer.serial != self._unanswered[0].serial:
            raise self._lost(f"answered command {answer.serial} out of turn")
        command = self._unanswered.popleft()
        if isinstance(answer, Failed):
            self._did_not_resume(command, answer)
        self._since = time.monotonic()
        self._post_backlog()

    def _did_not_resume(self, command: _Unwaited, answer: Failed) -> None:
        """A command that nobody waits for has failed. Raises `WorkerSetupError` or `WorkerLost`.

        A ring that holds what it must not is broken, and the worker is as good as any.
        """
        if command.setup:
            raise WorkerSetupError(answer.reason)
        if not (answer.lasting and isinstance(command.order, StartRing)):
            raise self._lost(f"could not resume: {answer.reason}")
        self._on_report(RingBroken(command.order.setup.index, answer.reason, told=False))

    def fileno(self) -> int:
        """The control channel's descriptor, for the master's poll set."""
        return self._channel.fileno()

    def call(self, order: AnyOrder, *, timeout: float = COMMAND_DEADLINE) -> Done:
        """Give one order and wait for its answer.

        Raises `WorkerRefused`, `WorkerLost` when there is no answer within `timeout` seconds, or
        what is due before: `WorkerSetupError`.
        """
        self.settle()
        return self.wait(self.post(order), timeout=timeout)

    def post(self, order: AnyOrder) -> int:
        """Send one order and return its serial for `wait`; it is `ready`. Raises `WorkerLost`."""
        return self._post_together((order,))

    def _post_together(self, orders: Sequence[AnyOrder]) -> int:
        """Send orders, at most TOGETHER_MOST, and return the serial of the first. Raises
        `WorkerLost`.
        """
        first = self._serial + 1
        self._serial += len(orders)
        self._gives_file = isinstance(orders[-1], OpenUserfault)
        commands = [Command(serial, order) for serial, order in enumerate(orders, first)]
        for command in commands:
            self._log.posted(command.serial, command.order)
        try:
            self._send(commands)
        except ChannelError as error:
            raise self._lost(str(error)) from error
        for queue in self.queues:
            for _ in commands:
                self._host.on_command(queue)
        return first

    def _send(self, commands: Sequence[Command]) -> None:
        """In one datagram if they fit: a driver may wait for the last of them."""
        try:
            self._channel.send(*commands)
        except TooLarge:
            if len(commands) == 1:
                raise
            for command in commands:
                self._channel.send(command)

    def wait(self, serial: int, *, timeout: float = COMMAND_DEADLINE) -> Done:
        """Wait for the answer to `serial`, the command given last, once it was `ready`."""
        answer = self._answer(time.monotonic(), timeout)
        if answer.serial != serial:
            if isinstance(answer, Done) and answer.file is not None:
                answer.file.close()
            raise self._lost(f"answered command {answer.serial} instead of {serial}")
        if isinstance(answer, Failed):
            raise WorkerRefused(answer.reason)
        return answer

    def read(self) -> None:
        """Take all that the worker says without being waited for. Raises `WorkerLost` or
        `WorkerSetupError`.
        """
        while (answer := self._next()) is not None:
            self._take_unwaited(answer)

    def _answer(self, since: float, timeout: float) -> Done | Failed:
        """Wait for the next answer, which was due `timeout` seconds after `since`. Raises
        `WorkerLost`.
        """
        attended = time.monotonic()
        while (answer := self._next()) is None:
            allowed, now = self._allowed(timeout), time.monotonic()
            left = since + allowed - now
            if left <= 0:
                raise self._lost(self.too_slow(allowed))
            if now - attended < ATTENTIVE_S:
                poll_until_readable(self.fileno(), min(left, ATTENTIVE_S))
            else:
                # In pieces: the hook may end, and with it what it is allowed.
                self._host.wait(self.fileno(), min(left, COMMAND_DEADLINE))
                attended = time.monotonic()
        return answer

    def too_slow(self, allowed: float | None = None) -> str:
        """What to say of a worker that has not answered for so long."""
        seconds = self._allowed(self._patience) if allowed is None else allowed
        whose = " (hook_timeout)" if seconds == self._host.hook_timeout else ""
        return f"no answer for {texts.seconds(seconds)}{whose}"

    def last_words(self, cause: str) -> str:
        """End it; the cause, with how it has ended or where its Python code was."""
        if self.wait_end(END_GRACE):
            return f"{cause} ({self.ending()})"
        stack = self.stack()
        return f"{cause}; it was at\n{stack}" if stack else cause

    def _next(self) -> Done | Failed | None:
        """The next answer, if there is one; what else is said up to there is passed on."""
        for _ in range(REPORTS_PER_TURN):
            try:
                received = self._channel.receive()
            except ChannelError as error:
                raise self._lost(str(error)) from error
            if received is None:
                return None
            report, fds = received
            if isinstance(report, Done) and report.file is not None and not self._gives_file:
                report.file.close()
                raise self._lost("sent a descriptor that nobody had asked for")
            if isinstance(report, Done | Failed):
                answer = report.reason if isinstance(report, Failed) else report.value
                self._log.answered(self._name, report.serial, answer)
                return report
            if isinstance(report, LockedIn) and report.listener is not None:
                self.take_listener(report.listener)
            if isinstance(report, RingBroken | Missing) and report.queue not in self.queues:
                raise self._lost(f"reported queue {report.queue}, which is not its own")
            if isinstance(report, ConfigSays) and CONFIG_QUEUE not in self.queues:
                raise self._lost("spoke for the configuration space, which is not its own")
            if isinstance(report, Ask) and CONFIG_QUEUE not in self.queues:
                for fd in fds:
                    fd.close()
                raise self._lost("asked for the device, for which it does not speak")
            self._on_report(report)
        return None

    @property
    def _name(self) -> str:
        return f"worker {self.pid} of {name_queues(self.queues)}"

    def _lost(self, cause: str) -> WorkerLost:
        self._log.lost(self._name, cause)
        return WorkerLost(self.queues, self.pid, cause)

    def ask_to_exit(self) -> None:
        """Ask the process to end, unless that was done; `exit` sees to it."""
        if self._asked_at:
            return
        self._asked_at = time.monotonic()
        try:
            self.post(control.Exit())
        except WorkerLost:
            pass  # it is ending

    def exit(self, timeout: float) -> bool:
        """Ask the process to end, and kill it if it has not after `timeout` seconds, or what its
        hooks are allowed; False if it lives even so.
        """
        try:
            self.ask_to_exit()
            since = self._asked_at
            # Until the channel ends, with the process.
            while time.monotonic() - since < self._allowed(timeout):
                self._answer(since, timeout)
        except WorkerLost:
            pass
        gone = self.wait_end(END_GRACE) or self.kill()
        self.close()
        return gone

    def close(self) -> None:
        """Release the channel, the pidfd and the file for the stack."""
        self._before_close()
        self._channel.close()
        self._stack.close()
        self._close_listener()
        self.pidfd.close()


def name_queues(queues: tuple[int, ...]) -> str:
    """ "queue 3" or "queues 0, 1", for messages; a standby has "no queue"."""
    if not queues:
        return "no queue"
    plural = "s" if len(queues) > 1 else ""
    return f"queue{plural} {', '.join(map(str, queues))}"
