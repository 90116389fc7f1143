"""A device that is served for the time of a test, on a socket of its own."""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vuproc.daemon import Daemon
from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.ops.admin import AdminError
from vuproc.ops.status import Status
from vuproc.testing import workers
from vuproc.testing.device_file import device_file, reference, sandbox_for
from vuproc.testing.errors import ServeFailed
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest
from vuproc.testing.process import START_TIMEOUT, DaemonProcess, started

__all__ = ["START_TIMEOUT", "STOP_TIMEOUT", "Served", "reference", "serve"]

STOP_TIMEOUT = 30.0
"""Seconds the process has to drain and leave after SIGTERM."""
LOOK_S = 0.005
"""Pause between two looks for the socket."""
_LAST_LINES = 30


class Served:
    """A running device. `lines` is its log so far, oldest first; `socket` is where it listens."""

    def __init__(
        self,
        command: list[str] | Callable[[Fd], Daemon],
        socket: Path,
        awaited: Path | None = None,
    ) -> None:
        """A daemon that writes its log to a given file, and is started; or a command line, which
        listens by and by. `awaited`: the socket whose coming says so; default: `socket`.
        """
        self.socket = socket
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._awaited = awaited or socket
        self._before = _stamp(self._awaited)
        self._output, written = (Fd(number) for number in os.pipe2(os.O_CLOEXEC))
        self._reader = threading.Thread(target=self._read, name="vuproc-log", daemon=True)
        self._reader.start()
        with written:
            self._process = started(command, written)

    @property
    def pid(self) -> int:
        """The process id of what was started: the master, or its keeper."""
        return self._process.pid

    def connect(self) -> FrontEnd:
        """A new connection with nothing negotiated."""
        return FrontEnd(self.socket)

    def guest(self, **options: Any) -> Guest:
        """A guest on a new connection; the options are those of `Guest`."""
        return Guest(self.socket, **options)

    # What an operator does.

    def status(self) -> Status:
        """What `vuproc status` shows, typed. Raises ServeFailed."""
        with self._answering():
            return workers.status_of(self.socket)

    def reload(self) -> list[str]:
        """What `vuproc reload` does: the device file is read anew; a line for each change.

        Raises ServeFailed if the device refuses.
        """
        with self._answering():
            return workers.reload(self.socket)

    def kill_worker(self, queue: int = 0, timeout_s: float = 30.0) -> int:
        """SIGKILL the worker of `queue`, and wait until it is gone; its pid.

        `timeout_s` bounds the wait for there being one. Raises ServeFailed, ValueError for no such
        queue.
        """
        deadline = time.monotonic() + timeout_s
        with self._answering():
            while True:
                pid = workers.wait_worker(self.socket, queue, None, deadline, self._await_news)
                if workers.kill_worker(self.socket, queue, pid):
                    return pid

    def wait_worker(
        self, queue: int = 0, *, other_than: int | None = None, timeout_s: float = 30.0
    ) -> int:
        """Wait until `queue` has a worker, and another one than the process `other_than`; its pid.

        Raises ServeFailed, at once if the queue is broken, ValueError for no such queue.
        """
        deadline = time.monotonic() + timeout_s
        with self._answering():
            return workers.wait_worker(self.socket, queue, other_than, deadline, self._await_news)

    # Its log and its end.

    def wait_for_line(
        self, wanted: str | Callable[[str], bool], timeout_s: float = 30.0, *, after: int = 0
    ) -> str:
        """The first log line from number `after` on that holds `wanted`. Raises ServeFailed."""
        matches = wanted if callable(wanted) else lambda line: wanted in line

        def found() -> str | None:
            return next((line for line in self.lines[after:] if matches(line)), None)

        with self._news:
            if not self._news.wait_for(lambda: found() is not None, timeout_s):
                raise self._failed(f"no log line with {wanted!r} within {timeout_s:g} s")
            line = found()
        assert line is not None
        return line

    def wait(self, timeout_s: float = STOP_TIMEOUT) -> int:
        """Wait until it ends by itself; its exit code. Raises ServeFailed."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failed(f"vuproc run did not end within {timeout_s:g} s") from None
        self._reader.join(STOP_TIMEOUT)
        if self._reader.is_alive():
            raise self._failed("a process of vuproc run outlives it and holds its output open")
        return code

    def stop(self, timeout_s: float = STOP_TIMEOUT) -> int:
        """SIGTERM, then wait; its exit code, also if it has ended before. Raises ServeFailed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL whatever is left of it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._reader.join(STOP_TIMEOUT)

    def end(self) -> None:
        """SIGTERM, whatever comes of it, then SIGKILL.

        One that is killed at once leaves its shared memory to the next that starts.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def _await_socket(self) -> None:
        """Wait until the socket has come to its path: then it accepts. What was there before is
        removed by then.
        """
        pidfd = os.pidfd_open(self.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            # Looks and no clock: where the machine stands still for a while, nobody can start.
            for _ in range(round(START_TIMEOUT / LOOK_S)):
                if _stamp(self._awaited) not in (None, self._before):
                    return
                if poller.poll(LOOK_S * 1000):
                    code = self.wait()
                    raise self._failed(f"vuproc run ended with exit code {code}")
            raise self._failed(f"{self.socket} did not listen in {START_TIMEOUT:g} s")
        finally:
            os.close(pidfd)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Whatever the admin socket refuses comes with the log's last lines."""
        try:
            yield
        except (AdminError, TimeoutError) as error:
            raise self._failed(str(error)) from error

    def _await_news(self, timeout_s: float) -> None:
        """Wait until the device logs something, at most `timeout_s` seconds."""
        with self._news:
            self._news.wait(timeout_s)

    def _await_start(self) -> None:
        """Wait until it serves. Raises ServeFailed."""
        if not isinstance(self._process, DaemonProcess):
            self._await_socket()
        elif self._process.refusal is not None:
            if self._process.never_there:
                raise self._failed(str(self._process.refusal))
            code = self.wait()
            raise self._failed(f"vuproc run ended with exit code {code}")

    def _read(self) -> None:
        with open(self._output.take(), "rb") as output:
            for line in output:
                with self._news:
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()

    def _failed(self, reason: str) -> ServeFailed:
        return ServeFailed(reason, tuple(self.lines[-_LAST_LINES:]))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Which file is at the path, and since when; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


@contextmanager
def serve(
    device: Device | type[Device] | Mapping[str, Any] | str | os.PathLike[str],
    /,
    *,
    file: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    **options: Any,
) -> Iterator[Served]:
    """Serve a device by `vuproc.Daemon` and stop it at the end.

    device: a device object; a device class, which must stand at the top level of its module; the
    `device:` part of a device file as a mapping; or the path of a device file. options: the
    device's options. file: further keys of the device file, such as `workers` or
    `exit_on_disconnect`. arguments: further ones of `vuproc run`: --supervised, --no-standby,
    --socket, --log-level.
    Raises ServeFailed if it does not start, or ends with another exit code than 0.
    """
    more = _arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="vuproc-") as name:
        make: Callable[[Fd], Daemon]
        if isinstance(device, Device):
            if options:
                raise ValueError("a device object has its options")
            socket = Path(more.pop("socket") or Path(name, "device.sock"))
            standby = more.pop("standby")
            given = {key: value for key, value in more.items() if value}
            keys = {**sandbox_for(":"), **(file or {}), **given, "standby": standby}
            made = device  # for the type checker: `device` may be rebound

            def make(output: Fd) -> Daemon:
                return Daemon(made, socket, name="device", output=output, **keys)

        else:
            path, socket = device_file(Path(name), device, file, options)
            socket = Path(more["socket"] or socket)

            def make(output: Fd) -> Daemon:
                return Daemon.from_file(path, output=output, **more)

        served = Served(make, socket)
        try:
            served._await_start()
            yield served
            code = served.stop()
            if code != 0:
                raise served._failed(f"vuproc run ended with exit code {code}")
        finally:
            served.end()


def _arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """What `vuproc run` takes beside the device file. ValueError for anything else."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--no-standby", dest="standby", action="store_false")
    parser.add_argument("--socket")
    parser.add_argument("--log-level")
    found, others = parser.parse_known_args(list(arguments))
    if others:
        raise ValueError(f"not for a device that is served for a test: {' '.join(others)}")
    return vars(found)
