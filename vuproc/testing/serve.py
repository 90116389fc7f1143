"""`vuproc run` as a child process for the time of a test, on a socket of its own."""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from vuproc.device import Device
from vuproc.ops.admin import AdminError
from vuproc.ops.status import Status
from vuproc.testing import workers
from vuproc.testing.errors import ServeFailed
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest
from vuproc.unix_path import ADMIN_SUFFIX

START_TIMEOUT = 30.0
"""Seconds until the socket must be there. Importing the author's modules counts in."""
STOP_TIMEOUT = 30.0
"""Seconds the process has to drain and leave after SIGTERM."""
LOOK_S = 0.005
"""Pause between two looks for the socket."""
_LAST_LINES = 30


class Served:
    """A running device. `lines` is its log so far, oldest first; `socket` is where it listens."""

    def __init__(self, command: list[str], socket: Path, awaited: Path | None = None) -> None:
        """`awaited`: the socket whose coming says that the device is up; default: `socket`."""
        self.socket = socket
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._awaited = awaited or socket
        self._before = _stamp(self._awaited)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._reader = threading.Thread(target=self._read, name="vuproc-log", daemon=True)
        self._reader.start()

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

    def stop(self) -> int:
        """SIGTERM, then wait; its exit code, also if it has ended before."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL whatever is left of it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_TIMEOUT)

    def end(self) -> None:
        """SIGTERM, whatever comes of it, then SIGKILL.

        One that is killed at once leaves its shared memory to the next that starts.
        """
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def _await_socket(self) -> None:
        """Wait until the socket has come to its path: then it accepts. What was there before is
        removed by then.
        """
        deadline = time.monotonic() + START_TIMEOUT
        pidfd = os.pidfd_open(self.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            while _stamp(self._awaited) in (None, self._before):
                if poller.poll(LOOK_S * 1000):
                    code = self.wait()
                    raise self._failed(f"vuproc run ended with exit code {code}")
                if time.monotonic() > deadline:
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

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
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
    device: type[Device] | Mapping[str, Any] | str | os.PathLike[str],
    /,
    *,
    file: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    **options: Any,
) -> Iterator[Served]:
    """Run `vuproc run` on a device and stop it at the end.

    device: the device's class, which must stand at the top level of its module; the `device:` part
    of a device file as a mapping; or the path of a device file. options: the device's options.
    file: further keys of the device file, such as `workers` or `exit_on_disconnect`.
    arguments: further ones of `vuproc run`, such as --supervised.
    Raises ServeFailed if it does not start, or ends with another exit code than 0.
    """
    with tempfile.TemporaryDirectory(prefix="vuproc-") as name:
        if isinstance(device, (str, os.PathLike)):
            if options or file:
                raise ValueError("a device file says everything already, options go into it")
            path = Path(device)
            socket, awaited = _sockets_of(path)
        else:
            described = dict(device) if isinstance(device, Mapping) else {"type": reference(device)}
            path, socket = Path(name, "device.yaml"), Path(name, "device.sock")
            awaited = socket
            content = {"socket": str(socket), "device": {**described, **options}, **(file or {})}
            # JSON is YAML.
            path.write_text(json.dumps(content, default=os.fspath), encoding="utf-8")
        command = [sys.executable, "-m", "vuproc", "run", *arguments, str(path)]
        served = Served(command, socket, awaited)
        try:
            served._await_socket()
            yield served
            code = served.stop()
            if code != 0:
                raise served._failed(f"vuproc run ended with exit code {code}")
        finally:
            served.end()


def reference(device: type[Device]) -> str:
    """What a device file's `type` says for a class: `module:Class`, or `file.py:Class`.

    ValueError if the class is not at the top level of a module.
    """
    if "." in device.__qualname__:
        raise ValueError(f"{device.__qualname__} must stand at the top level of its module")
    source = inspect.getfile(device)
    if _importable(device.__module__, source):
        return f"{device.__module__}:{device.__name__}"
    return f"{os.path.abspath(source)}:{device.__name__}"


def _importable(module: str, source: str) -> bool:
    """Whether another process with the same sys.path finds the module, and the same one."""
    where: list[str] | None = None
    spec = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), where)
        if spec is None:
            return False
        where = list(spec.submodule_search_locations or [])
    return spec is not None and spec.origin == source


def _sockets_of(path: Path) -> tuple[Path, Path]:
    """The device's socket, and the one that is there once it serves: in client mode the VMM makes
    the first, and the device that for operators.
    """
    from ruamel.yaml import YAML  # slow to import, and seldom needed

    said = YAML(typ="safe").load(path)["socket"]
    keys = said if isinstance(said, dict) else {"path": said}
    socket = (path.parent / Path(keys["path"]).expanduser()).resolve()
    return socket, Path(f"{socket}{ADMIN_SUFFIX}") if keys.get("mode") == "client" else socket
