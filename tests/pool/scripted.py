"""A device that does what the first word of each request says, for tests of worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Options, Request
from vuproc.errors import RequestAbandoned


class ScriptedOptions(Options, kw_only=True):
    once: Annotated[str, Meta(description="A file; what is done once makes it.")] = ""
    broken_setup: bool = False
    shared_worker: bool = False


class Scripted(Device):
    """Device id 42; requests are a word and its argument, answered with text."""

    device_id = 42
    options_type = ScriptedOptions
    options: ScriptedOptions

    def queue_groups(self) -> list[tuple[int, ...]]:
        if self.options.shared_worker:
            return [tuple(range(self.num_queues()))]
        return super().queue_groups()

    def config_space(self) -> bytes:
        return b"config--"

    def setup(self, queue: int) -> None:
        if self.options.broken_setup:
            raise RuntimeError("no such hardware")
        self.held: list[Request] = []
        self.log.info("hook setup %d", queue)

    def handle(self, request: Request) -> None:
        word, _, argument = request.read().decode().partition(" ")
        verb = getattr(self, f"do_{word}")
        verb(request, argument)

    def do_echo(self, request: Request, argument: str) -> None:
        request.write(argument.encode())

    def do_pid(self, request: Request, argument: str) -> None:
        request.write(str(os.getpid()).encode())

    def do_raise(self, request: Request, argument: str) -> None:
        raise LookupError(argument)

    def do_die(self, request: Request, argument: str) -> None:
        if self._first_time():
            os.kill(os.getpid(), signal.Signals[argument])
        request.write(b"alive")

    def do_poison(self, request: Request, argument: str) -> None:
        self._count(argument)
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_stall(self, request: Request, argument: str) -> None:
        self._count(argument)
        signal.pause()

    def do_count_and_die(self, request: Request, argument: str) -> None:
        self._count(argument)
        if self._first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        request.write(b"done")

    def do_crash(self, request: Request, argument: str) -> None:
        if self._first_time():
            ctypes.string_at(0)
        request.write(b"alive")

    def do_nap(self, request: Request, argument: str) -> None:
        time.sleep(float(argument))

    def do_tell(self, request: Request, argument: str) -> None:
        """Open a FIFO, for somebody who waits for that, then take so many seconds."""
        fifo, _, seconds = argument.partition(" ")
        with open(fifo, "wb"):
            pass
        time.sleep(float(seconds))
        request.write(b"told")

    def do_spin(self, request: Request, argument: str) -> None:
        self._count(argument)
        while True:
            pass

    def do_hang(self, request: Request, argument: str) -> None:
        if self._first_time():
            signal.pause()
        request.write(b"awake")

    def do_hold(self, request: Request, argument: str) -> None:
        """Keep it, and finish it when the file `argument` (a FIFO) can be read."""
        request.defer()
        self.held.append(request)
        fifo = os.open(argument, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

        def released() -> None:
            self.unwatch(fifo)
            os.close(fifo)
            request.write(b"released")
            request.finish()
            self.held.remove(request)

        self.watch(fifo, released)

    def do_keep(self, request: Request, argument: str) -> None:
        request.defer()
        self.held.append(request)

    def do_drop(self, request: Request, argument: str) -> None:
        """Finish all that is kept, last first, then this one."""
        while self.held:
            kept = self.held.pop()
            kept.write(b"kept")
            kept.finish()
        request.write(b"dropped")

    def do_badwatch(self, request: Request, argument: str) -> None:
        read, write = os.pipe()
        os.write(write, b"x")

        def fails() -> None:
            self.unwatch(read)
            os.close(read)
            os.close(write)
            raise ArithmeticError("in a callback")

        self.watch(read, fails)

    def ring_started(self, queue: int) -> None:
        self.log.info("hook ring_started %d", queue)

    def ring_stopped(self, queue: int) -> None:
        self.log.info("hook ring_stopped %d", queue)

    def features_acked(self, features: int) -> None:
        self.log.info("hook features_acked %#x", features)

    def config_written(self, offset: int, data: bytes) -> None:
        if data == b"bad!":
            raise ValueError("not that")
        self.log.info("hook config_written %d %s", offset, data.decode())

    def reset(self) -> None:
        self.log.info("hook reset")

    def teardown(self) -> None:
        self.log.info("hook teardown")

    def fail(self, request: Request, error: BaseException) -> None:
        if isinstance(error, RequestAbandoned):
            request.write(f"abandoned {error.attempts}".encode())
            request.finish()
        else:
            super().fail(request, error)

    def _count(self, argument: str) -> None:
        """One byte an execution."""
        with open(argument, "ab") as file:
            file.write(b"x")

    def _first_time(self) -> bool:
        try:
            os.close(os.open(self.options.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True


class Dropping(Scripted):
    """What a dead worker had begun is completed as if nothing had been written."""

    resubmit = "drop"


class Failing(Scripted):
    """What a dead worker had begun is failed."""

    resubmit = "fail"


class Hopeless(Scripted):
    """Dies in its ring's start: no request is to blame."""

    def ring_started(self, queue: int) -> None:
        if os.path.exists(self.options.once):
            os.kill(os.getpid(), signal.SIGSEGV)


class WrongType(Device):
    """Returns what it should not."""

    device_id = 42

    def handle(self, request: Request) -> None:
        return request.write(b"x")  # type: ignore[return-value]
