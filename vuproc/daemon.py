"""A device that a program serves, as an object: started, asked, reloaded and stopped by it.

    from vuproc import Daemon, Device, Request

    class Entropy(Device):
        device_id = 4

        def handle(self, request: Request) -> None:
            request.put(os.urandom(request.writable))

    with Daemon(Entropy(), "./entropy.sock") as daemon:
        daemon.wait()

Each daemon has a master process of its own, a fresh interpreter: nothing that the program does, and
nothing that holds its GIL, delays a front-end. The master ends with the program, however that ends.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from vuproc.device import Device
from vuproc.errors import (
    ConfigErrors,
    DaemonRefused,
    HostRefused,
    NotRunning,
    SocketRefused,
    StartRefused,
    in_words,
)
from vuproc.events import Stopped
from vuproc.fd import HasFileno
from vuproc.ops.status import Status
from vuproc.options import MAX_QUEUES
from vuproc.place import shown
from vuproc.program.aio import AsyncForms
from vuproc.program.at_exit import STOP_TIMEOUT_S, stop_at_exit
from vuproc.program.delivery import OnEvent
from vuproc.program.end_signals import EndSignals
from vuproc.program.messages import GIVEN
from vuproc.program.place import Connect, Place, as_file, is_open
from vuproc.program.running import START_TIMEOUT_S, Running
from vuproc.program.start import FileStart, sealed
from vuproc.program.starting import Starting
from vuproc.program.wanted import (
    LogLevel,
    Wanted,
    WantedFile,
    WantedObject,
    checked_device,
    queues_of,
)

__all__ = ["Connect", "Daemon"]

EXIT_OK = 0
EXIT_FAILURE = 1


class Daemon(AsyncForms):
    """Serves one device at one socket, from `start` to `stop`, again and again if you like.

    Every method may be called from any thread, and `stop` from a signal handler too. In a fork of
    the program there is nothing to ask or to stop: the daemon is the parent's.
    """

    def __init__(
        self,
        device: Device,
        socket: Place,
        *,
        permissions: int = 0o600,
        owner: str | int | None = None,
        group: str | int | None = None,
        exit_on_disconnect: bool = False,
        workers: Sequence[Sequence[int]] | None = None,
        inband_notifications: bool = False,
        iommu: bool = False,
        stall_timeout: float = 30.0,
        hook_timeout: float = 30.0,
        packed: bool = True,
        postcopy: bool = False,
        xen: Literal["off", "on", "auto"] = "off",
        sandbox: Literal["strict", "standard", "off"] | Mapping[str, Any] = "standard",
        log_level: LogLevel = "info",
        supervised: bool = False,
        standby: bool = True,
        name: str | None = None,
        output: HasFileno | int | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """Nothing is started yet. ValueError or TypeError for what no device file could say.

        device: the device, with its options; its class may be of `__main__`, of a notebook or of a
        function. It is copied at `start`: what happens to the object later is of no consequence.
        socket: a path to listen at; `Connect(path)` for a VMM that listens; or an open Unix stream
        socket, listening or connected, which stays the caller's.
        permissions, owner, group: of the socket that is made at a path.
        exit_on_disconnect, workers, packed, inband_notifications, iommu, postcopy, xen, sandbox,
        stall_timeout, hook_timeout (seconds), log_level: as in a device file (docs/device-file.md).
        supervised: survive the death of the master too, as `vuproc run --supervised`.
        standby: if supervised, have a second process wait for that, so that it is quick.
        name: what the log calls it; default: the name of the socket, or that of the class.
        output: where standard output and error of its processes go; default: where the program's
        do, which need be no file of Python's.
        on_event: called with each of `vuproc.events`, by a thread of its own; what it raises is
        logged. It may call any method here.
        """
        access = {"permissions": permissions, "owner": owner, "group": group}
        keys = {
            "exit_on_disconnect": exit_on_disconnect,
            "workers": queues_of(workers),
            "inband_notifications": inband_notifications,
            "iommu": iommu,
            "stall_timeout": stall_timeout,
            "hook_timeout": hook_timeout,
            "packed": packed,
            "postcopy": postcopy,
            "xen": xen,
            "sandbox": sandbox,
            "log_level": log_level,
        }
        wanted = WantedObject(device, socket, access, keys)
        if supervised and wanted.given is not None:
            raise ValueError("an open socket and supervised exclude each other")
        if not isinstance(name, (str, type(None))):
            raise TypeError(f"name is a text, not {shown(name)}")
        wanted.name = name or wanted.name
        wanted.standby = standby
        self._set_up(wanted, supervised, output, on_event)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        socket: str | os.PathLike[str] | None = None,
        log_level: LogLevel | None = None,
        supervised: bool = False,
        standby: bool = True,
        output: HasFileno | int | None = None,
        on_event: OnEvent | None = None,
    ) -> Self:
        """The daemon that `vuproc run` would be with this device file.

        `socket` and `log_level` replace what the file says; the rest is as for a device object.
        """
        start = FileStart(
            path=os.path.abspath(path),
            socket=None if socket is None else os.path.abspath(socket),
            log_level=log_level,
            standby=standby,
        )
        daemon = cls.__new__(cls)
        daemon._set_up(WantedFile(start), supervised, output, on_event)
        return daemon

    def _set_up(
        self,
        wanted: Wanted,
        supervised: bool,
        output: HasFileno | int | None,
        on_event: OnEvent | None,
    ) -> None:
        self._wanted = wanted
        self._supervised = supervised
        self._output = as_file(output)
        self._on_event = on_event
        self._running: Running | None = None
        self._starting: Starting | None = None
        self._launching = threading.Lock()
        self._reloading = threading.Lock()

    # The life.

    def start(self, timeout: float = START_TIMEOUT_S) -> Self:
        """Start it, and return once it accepts connections; in client mode, once it tries to.

        Raises a StartRefused after which nothing is left of it: DeviceRefused if the device cannot
        be set up (also by its own `setup`), SocketRefused, HostRefused, StartTimeout after so many
        seconds. For a device file that is not valid: ConfigErrors. RuntimeError if it runs, or is
        being started. A `stop` meanwhile ends the start too. What interrupts it, such as
        KeyboardInterrupt, leaves nothing either.
        """
        self._start(timeout, Starting())
        return self

    def _start(
        self,
        timeout: float,
        starting: Starting,
        on_launch: Callable[[Running], None] = lambda running: None,
    ) -> None:
        if not self._launching.acquire(blocking=False):
            raise RuntimeError("the daemon is being started already")
        try:
            if self.running:
                raise RuntimeError("the daemon runs already")
            self._running = None
            self._starting = starting
            running = self._launched()
        finally:
            self._launching.release()
        try:
            starting.launched(running)
            on_launch(running)
            running.wait_ready(timeout)
            if starting.overtaken:
                raise StartRefused("it was asked to stop while it was launched")
        except BaseException:
            running.end_at_once()
            raise

    def _launched(self) -> Running:
        given, output = self._wanted.given, self._output
        if given is not None and not is_open(given):
            raise SocketRefused("the socket that it was given is closed by now")
        if output is not None and not is_open(output):
            raise HostRefused("the file for its output is closed")
        wanted = self._wanted.described()
        try:
            running = Running(
                wanted,
                {} if given is None else {GIVEN: given},
                supervised=self._supervised,
                output=output,
                on_event=self._on_event,
            )
        except OSError as error:
            raise HostRefused(f"its process cannot be started: {in_words(error)}") from error
        self._running = running
        stop_at_exit(running)
        return running

    def wait(self, timeout: float | None = None) -> Stopped | None:
        """Wait for the end, and say why; None if it still runs after `timeout` seconds.

        Raises NotRunning if it was never started.
        """
        return self._run().wait(timeout)

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> Stopped | None:
        """End it in order: its rings finish what they have, its front-end is disconnected.

        What has not ended after `timeout` seconds is asked not to wait for its workers, and killed
        3 seconds later. Idempotent: another `stop` of the same daemon waits with its own timeout.
        None if it was never started, or is being launched just now: then `start` raises
        StartRefused. It takes no lock, so a signal handler may call it. Raises DaemonSilent if even
        SIGKILL does not end it.
        """
        if self._starting is not None:
            self._starting.given_up = True
        running = self._running
        if running is None or running.owner != os.getpid():
            return None
        return running.stop(timeout)

    def serve(self, timeout: float = START_TIMEOUT_S) -> int:
        """Start, and serve until SIGTERM or SIGINT, or until it ends by itself; an exit code.

        For `sys.exit(daemon.serve())`. A second signal has it not wait for its workers. What keeps
        it from starting is one line on standard error. In another thread than the main one,
        signals do what they do.
        """
        ends = EndSignals()
        with ends:
            try:
                self._start(timeout, Starting(), ends.tell)
            except (StartRefused, ConfigErrors) as error:
                if ends.came:
                    return EXIT_OK
                if self._running is None or self._running.refused is not error:
                    print(f"vuproc {self._wanted.name}: ERROR: {error}", file=sys.stderr)
                return EXIT_FAILURE
            running = self._run()
            running.wait(None)
            stopped = running.stop(0.0)
        return EXIT_OK if stopped.ok else EXIT_FAILURE

    @property
    def running(self) -> bool:
        """Whether it was started, and has not ended."""
        running = self._running
        return running is not None and running.owner == os.getpid() and not running.ended.is_set

    @property
    def pid(self) -> int:
        """The process id of what was started: its master, or the keeper of one (`supervised`).

        The master's own is in `status` and in `events.Ready`. Raises NotRunning.
        """
        return self._run().pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # Requests.

    def status(self) -> Status:
        """Its queues, its workers and its front-end, at this moment. Raises a DaemonError."""
        return msgspec.convert(self._run().ask("status"), Status)

    def restart_queue(self, number: int) -> None:
        """Serve a broken queue again, from its record. Raises DaemonRefused."""
        number = operator.index(number)
        if not 0 <= number < MAX_QUEUES:
            raise DaemonRefused(f"no queue {number}")
        self._run().ask("queue-restart", number)

    def reload(self, device: Device | None = None) -> list[str]:
        """Have `device` served instead, without a front-end's notice; a line for each change.

        None: what the daemon's own device object is by now, or the device file says by now. What
        can be, is applied by new workers, one queue at a time, and no request is lost:
        `events.Reloaded` follows. What needs another session takes effect once the front-end has
        left; the lines say so. Raises DeviceRefused for a device that could not be started, and
        DaemonRefused; then nothing has changed. After a DaemonSilent it may yet be carried out, and
        is the daemon's device from then on.
        """
        running, wanted = self._run(), self._wanted
        if isinstance(wanted, WantedFile):
            if device is not None:
                raise TypeError("the device of this daemon comes from a device file")
            return _lines(running.ask("reload"))
        with self._reloading:
            found = wanted.device if device is None else checked_device(device)
            described = wanted.described(found, running=True)
            try:
                file = sealed(described)
            except OSError as error:
                raise DaemonRefused(
                    f"the device cannot be handed over: {in_words(error)}"
                ) from error

            def taken() -> None:
                wanted.device = found

            with file:
                lines = _lines(running.ask("reload", file=file, late=taken))
            taken()
        return lines

    # What is ours.

    def _run(self) -> Running:
        if self._running is None:
            raise NotRunning("the daemon was not started")
        if self._running.owner != os.getpid():
            raise NotRunning(f"the daemon is that of process {self._running.owner}")
        return self._running


def _lines(answer: Any) -> list[str]:
    return list(answer["lines"])
