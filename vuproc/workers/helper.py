"""The helper of a device: a worker process without a queue, for what nobody waits for.

The device's code runs in a thread of its own, so that the master is answered meanwhile.
"""

from __future__ import annotations

import os
import select
import threading

from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.workers import control
from vuproc.workers.channel import ChannelError
from vuproc.workers.control import Done, Failed, WorkerChannel
from vuproc.workers.log import WorkerLog

EXIT_FAILED = 71
"""Exit code: the device's code has ended by itself, or by an exception, which was logged."""


def run(channel: WorkerChannel, device: Device, said: WorkerLog) -> int:
    """Run the helper until the master has it end; the exit code. Raises ChannelError."""
    ending = Fd(os.eventfd(0, os.EFD_CLOEXEC))
    over = Fd(os.eventfd(0, os.EFD_CLOEXEC))
    failed = threading.Event()

    def work() -> None:
        try:
            device.run_helper(ending)
        except Exception as error:
            failed.set()
            said.failed("run_helper", error)
        finally:
            os.eventfd_write(over.fileno(), 1)

    # A daemon: when the master has gone, what it does is not waited for.
    threading.Thread(target=work, name="helper", daemon=True).start()
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    poll.register(over.fileno(), select.POLLIN)
    asked: int | None = None
    while True:
        due = said.due()
        ready = [number for number, _ in poll.poll(None if due is None else max(0.0, due) * 1000)]
        said.tend()
        if over.fileno() in ready:
            said.tend(at_last=True)
            if asked is None:
                return EXIT_FAILED
            channel.send(Done(asked))
            return EXIT_FAILED if failed.is_set() else 0
        if channel.fileno() in ready:
            asked = _obey(channel, ending, asked)


def _obey(channel: WorkerChannel, ending: Fd, asked: int | None) -> int | None:
    """One command; the serial of the one to end, if that was told."""
    received = channel.receive()
    if received is None:
        return asked
    command, fds = received
    for fd in fds:
        fd.close()
    if isinstance(command.order, control.Exit):
        os.eventfd_write(ending.fileno(), 1)
        return command.serial
    try:
        channel.send(Failed(command.serial, "a helper has no queues"))
    except ChannelError:
        pass  # it is seen at the next look
    return asked
