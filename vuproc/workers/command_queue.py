"""The commands that have come from the master and are not carried out yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from vuproc.errors import MemoryFault, RingError
from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.workers.channel import ChannelClosed
from vuproc.workers.commands import Commands, Leave
from vuproc.workers.control import Command, Done, Failed, Refusal, WorkerChannel
from vuproc.workers.log import WorkerLog
from vuproc.workers.queue_uring import RingBusy


class CommandQueue:
    """Carries them out in their order, each as soon as the rings that it concerns are idle, and
    answers them. The master has a deadline for that.
    """

    def __init__(
        self,
        channel: WorkerChannel,
        commands: Commands,
        counters: Sequence[QueueCounters],
        said: WorkerLog,
        answer: Callable[[Done | Failed], None],
    ) -> None:
        self._channel = channel
        self._commands = commands
        self._counters = counters
        self._said = said
        self._answer = answer
        self._waiting: deque[tuple[Command, tuple[Fd, ...]]] = deque()
        self._begun = False
        """The device knows of the command that waits first."""
        self._took_over = False

    @property
    def waits(self) -> bool:
        """Whether there is one."""
        return bool(self._waiting)

    @property
    def held_up(self) -> bool:
        """Whether the first of them waits for what is in flight."""
        return self._commands.waits_for(self._waiting[0][0].order)

    def receive(self, _mask: int) -> None:
        """The control channel is readable."""
        try:
            received = self._channel.receive()
        except ChannelClosed:
            # The master has gone, and with it the right to touch guest memory.
            raise Leave(0) from None
        if received is None:
            return
        for counters in self._counters:
            counters.note_command()
        self._waiting.append(received)
        self.settle()

    def settle(self) -> None:
        """Carry out what can be by now."""
        if not self._waiting:
            return
        while self._waiting:
            if not self._begun:
                self._begun = True
                self._commands.begin(self._waiting[0][0].order)
            if self.held_up:
                return
            self._begun = False
            self._carry_out(*self._waiting.popleft())
        self._commands.readmit()

    def _carry_out(self, command: Command, fds: tuple[Fd, ...]) -> None:
        if not self._took_over:
            self._took_over = True
            # Our predecessor is gone, whatever it was doing: while we set up it may have lived.
            for counters in self._counters:
                counters.hand_none()
                counters.leave_hooks()
        kept = False
        try:
            done = self._commands.carry_out(command)
            kept = command.order.keeps_fds
        except Leave:
            self._said.tend(at_last=True)  # nobody listens after the answer
            self._answer(Done(command.serial))
            raise
        except (RingError, MemoryFault, OSError, Refusal) as error:
            lasting = isinstance(error, RingError) and not isinstance(error, RingBusy)
            self._answer(Failed(command.serial, str(error), lasting))
        else:
            self._answer(done)
        finally:
            if not kept:
                for fd in fds:
                    fd.close()
