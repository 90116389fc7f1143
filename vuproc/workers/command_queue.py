"""The commands that have come from the master and are not carried out yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from vuproc.errors import MemoryFault, RingError
from vuproc.fd import Fd
from vuproc.shm.counters import QueueCounters
from vuproc.vhost_user.effects import StartRing
from vuproc.workers.channel import TOGETHER_MOST, ChannelClosed
from vuproc.workers.commands import Commands, Leave
from vuproc.workers.control import AnyOrder, Command, Done, Failed, Refusal, WorkerChannel
from vuproc.workers.log import WorkerLog
from vuproc.workers.queue_uring import RingBusy

TOGETHER_S = 0.01
"""Seconds after which no other is begun before that."""


class Answers(Protocol):
    """Takes the answers to some commands, in their order."""

    def __call__(self, *answers: Done | Failed) -> None: ...  # noqa: D102


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
        answer: Answers,
    ) -> None:
        self._channel = channel
        self._commands = commands
        self._counters = counters
        self._said = said
        self._answer = answer
        self._answers: list[Done | Failed] | None = None
        """What is to be answered together, meanwhile."""
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
        """The control channel is readable. A worker that takes over is given several commands at
        once: the master is not to be woken by each of the answers, on a CPU that we could have. A
        ring that has started gets its turn first.
        """
        self._answers, until = [], time.monotonic() + TOGETHER_S
        try:
            for _ in range(TOGETHER_MOST):  # before the first of them is answered
                order = self._receive_one()
                if order is None or isinstance(order, StartRing):
                    break
                if self._waiting or time.monotonic() > until:
                    break
        finally:
            answers, self._answers = self._answers, None
            if answers:
                self._answer(*answers)

    @property
    def has_unread(self) -> bool:
        """Whether there are commands that no poll tells of: `receive_unread` takes them."""
        return self._channel.has_unread

    def receive_unread(self) -> None:
        """Take what came with the command received last, as `receive` does."""
        if self._channel.has_unread:
            self.receive(0)

    def _receive_one(self) -> AnyOrder | None:
        """Take the next command, if there is one, and carry out what can be; its order."""
        try:
            received = self._channel.receive()
        except ChannelClosed:
            # The master has gone, and with it the right to touch guest memory.
            raise Leave(0) from None
        if received is None:
            return None
        for counters in self._counters:
            counters.note_command()
        self._waiting.append(received)
        self.settle()
        return received[0].order

    def _say(self, answer: Done | Failed) -> None:
        if self._answers is None:
            self._answer(answer)
        else:
            self._answers.append(answer)

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
            self._say(Done(command.serial))
            raise
        except (RingError, MemoryFault, OSError, Refusal) as error:
            lasting = isinstance(error, RingError) and not isinstance(error, RingBusy)
            self._say(Failed(command.serial, str(error), lasting))
        else:
            self._say(done)
        finally:
            if not kept:
                for fd in fds:
                    fd.close()
