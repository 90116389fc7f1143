"""The entry of a worker process, and all that it imports.

The forkserver imports this module once; each worker is a fork of it and needs only its device's own
code on top.
"""

from __future__ import annotations

import logging
import mmap
import os
import resource
import socket
import time
import traceback
from pathlib import Path

from vuproc import texts
from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.handover.keeper.error_output import ErrorOutput
from vuproc.loader import build
from vuproc.sandbox.lockdown import Lockdown
from vuproc.sandbox.policy import HINT
from vuproc.shm.segment import Segment
from vuproc.workers import control, io_priority, stack
from vuproc.workers.channel import ChannelClosed, ChannelError
from vuproc.workers.control import (
    Command,
    Done,
    Failed,
    LockedIn,
    WorkerChannel,
    worker_end,
)
from vuproc.workers.log import WorkerLog
from vuproc.workers.loop import Worker
from vuproc.workers.parent_death import die_with_parent, prctl
from vuproc.workers.rehearsal import rehearse, rehearse_with
from vuproc.workers.throttle import words
from vuproc.workers.traces import WorkerTraces

log = logging.getLogger("vuproc.worker")
_all_logs = logging.getLogger("vuproc")

EXIT_SETUP = 3
"""Exit code: the device could not be set up; the reason went to the master."""
EXIT_BUG = 70
"""Exit code: an exception of our own ended the loop."""
PREPARE_DEADLINE = 30.0
"""Seconds the master has for the first command; a standby waits for the second for ever."""
_PR_SET_DUMPABLE = 4
CO_COROUTINE = 0x80
"""inspect.CO_COROUTINE: it was defined by `async def`."""


def run(control_end: Fd, stack_file: Fd, parent: int) -> None:
    """Serve the queues that the second message names, then end the process.

    `control_end` is the control channel, `stack_file` where to write the stack when it is asked
    for, `parent` the forkserver's process.
    """
    stack.offer(stack_file)
    _harden(parent)
    channel = worker_end(socket.socket(fileno=control_end.take()))
    try:
        code = _serve(channel, stack_file, parent)
    except ChannelClosed:
        code = 0  # the master has gone
    except ChannelError as error:
        prefix = f"vuproc worker {os.getpid()}: "
        ErrorOutput(prefix).write(f"{prefix}{texts.described(error)}")
        code = EXIT_BUG
    except Exception as error:
        WorkerLog(channel).failed(f"worker {os.getpid()} failed", error)
        code = EXIT_BUG
    # No atexit handler or finaliser may touch guest memory or the device once the loop is over.
    os._exit(code)


def _serve(channel: WorkerChannel, stack_file: Fd, parent: int) -> int:
    if not channel.wait(PREPARE_DEADLINE):
        return EXIT_SETUP
    first = _command(channel)
    prepare = first.order
    if not isinstance(prepare, control.Prepare):
        raise ChannelError("the first command is not Prepare")
    try:
        worker, counters, limits, said = _prepare(channel, prepare)
        lockdown = None if prepare.sandbox is None else Lockdown(prepare.sandbox)
    except Exception as error:
        channel.send(Failed(first.serial, f"{prepare.type_ref}: {_blame(error)}"))
        return EXIT_SETUP
    channel.send(Done(first.serial))

    if lockdown is not None:
        stack.offer_violations(stack_file)
    if channel.wait(0.0):
        second = _command(channel)
        waits = isinstance(second.order, control.Assign) and second.order.ahead
    else:
        second, waits = None, True
    if waits:
        # A standby.
        _rehearse(prepare, type(worker))
        if lockdown is not None and lockdown.early:
            _lock(lockdown, channel, said, parent)
            lockdown = None
    if second is None:
        channel.wait(None)
        second = _command(channel)
    assign = second.order
    if isinstance(assign, control.Exit):
        return 0
    if isinstance(assign, control.Help):
        if lockdown is not None:
            _lock(lockdown, channel, said, parent)
        channel.send(Done(second.serial))
        return worker.help()
    if not isinstance(assign, control.Assign):
        raise ChannelError("the second command is not Assign")
    try:
        if lockdown is not None and lockdown.strict:
            _lock(lockdown, channel, said, parent)
            lockdown = None
        worker.take(assign.queues, counters, limits, recovered=assign.recovered)
        if lockdown is not None:
            _lock(lockdown, channel, said, parent)
    except Exception as error:
        hint = HINT if said.sandboxed and isinstance(error, PermissionError) else ""
        channel.send(Failed(second.serial, f"{prepare.type_ref}: {_blame(error)}{hint}"))
        return EXIT_SETUP
    channel.send(Done(second.serial))
    return worker.run()


def _rehearse(prepare: control.Prepare, kind: type[Worker]) -> None:
    """Without it all goes well, too, and takes longer."""
    began = time.monotonic_ns()
    try:
        served = rehearse()
        if prepare.pickled is None:
            device = _device(prepare)
            device.shared = prepare.shared
            if device.opens_nothing():
                rehearse_with(device, kind)
    except Exception as error:
        log.debug("not rehearsed: %s", texts.described(error))
        return
    if not served:
        log.debug("not rehearsed: its request was not served")
        return
    log.debug("rehearsed in %d us", (time.monotonic_ns() - began) // 1000)


def _lock(lockdown: Lockdown, channel: WorkerChannel, said: WorkerLog, parent: int) -> None:
    """From here on there is only what the device needs; the master hears what could not be had."""
    lacks = lockdown.close()
    said.sandboxed = True
    if os.getppid() != parent:
        raise ChannelClosed("the forkserver has gone")
    if lacks or lockdown.listener is not None:
        channel.send(LockedIn(lacks, lockdown.listener))
    if lockdown.listener is not None:
        lockdown.listener.close()


def _command(channel: WorkerChannel) -> Command:
    """The command that is there. Raises ChannelError."""
    received = channel.receive()
    if received is None:
        raise ChannelError("no command is there")
    return received[0]


def _prepare(
    channel: WorkerChannel, prepare: control.Prepare
) -> tuple[Worker, Segment | None, mmap.mmap | None, WorkerLog]:
    """All that can be done before the queues are known: a driver waits for what is left."""
    _all_logs.setLevel(prepare.log_level)
    said = WorkerLog(channel)
    _all_logs.addHandler(said)
    _all_logs.propagate = False
    device = _device(prepare)
    device.shared = prepare.shared
    counters = None if prepare.counters is None else Segment.attach(prepare.counters)
    worker = _kind(device)(channel, device, prepare.chain_limit, said)
    if prepare.trace is not None:
        with prepare.trace as file:
            worker.traces = WorkerTraces(file, prepare.trace_bytes)
    limits = None
    if prepare.limits is not None:
        with prepare.limits as file:
            limits = mmap.mmap(file.fileno(), words(device.num_queues()))
    if device.options.io_priority is not None:
        io_priority.set_for_us(device.options.io_priority)
    return worker, counters, limits, said


def _kind(device: Device) -> type[Worker]:
    """The worker for a device. asyncio could tell a coroutine function, and is slow to import."""
    handle = device.handle
    code = getattr(getattr(handle, "__func__", handle), "__code__", None)
    if code is None or not code.co_flags & CO_COROUTINE:
        return Worker
    from vuproc.workers.asyncio_worker import AsyncioWorker

    return AsyncioWorker


def _device(prepare: control.Prepare) -> Device:
    if prepare.pickled is None:
        return build(prepare.type_ref, prepare.base_dir, prepare.options)
    from vuproc import device_object  # a device file has none

    with prepare.pickled as pickled:
        return device_object.unpickled(device_object.content_of(pickled))


def _blame(error: BaseException) -> str:
    """The error with the place in the device's own code: FILE:LINE in FUNCTION."""
    from vuproc import place  # for mistakes only

    described = texts.described(error)
    calls = traceback.extract_tb(error.__traceback__)
    # Of a device that is an installed package, what is not vuproc's.
    theirs = [call for call in calls if not place.is_of_others(call.filename)] or [
        call for call in calls if place.PACKAGE not in Path(call.filename).parents
    ]
    if not theirs:
        return described
    return f"{theirs[-1].filename}:{theirs[-1].lineno} in {theirs[-1].name}: {described}"


def _harden(parent: int) -> None:
    """Outlive nobody, and keep guest memory out of core dumps and other processes' reach.

    Signals are the master's business: the forkserver ignores them for all of us.
    """
    # The forkserver ends with the master. Whatever the device is doing then, it stops: the control
    # channel says the same, but only between two batches.
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(_PR_SET_DUMPABLE, 0)
