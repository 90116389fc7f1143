"""The keeper of many devices: one parent, which keeps each as a device alone is kept.

    python -I -S __main__.py --devices PATH [--devices PATH]... COMMAND [ARGUMENT...]

A path is a device file, or a folder of such. COMMAND with the paths behind it becomes the shared
forkserver, with one file behind it a master.

    SIGTERM, SIGINT    every device ends; then the end
    SIGHUP             the folders are looked at anew, every device that runs reads its file again,
                       and one that does not is started again
    SIGUSR2            every device goes on with newly installed code, masters to come with it, too
    a change in a      devices whose files have come are started, those whose files have gone end;
      folder           one that has failed, or waits, is tried again if its file has changed. A
                       file that has changed otherwise waits for SIGHUP: somebody may be editing it
    a device needs     it waits, and is tried again and again; nothing for the others
      what is away
    a device fails     nothing for the others

With a folder the exit code is 0: what has failed was said. Without one the end comes once no device
is left, with the largest of their codes.
"""

import itertools
import os
import select
import signal
import socket
import sys
import time

from .control import Control
from .descriptors import MAX_STORED
from .device import FleetDevice
from .error_output import ErrorOutput
from .folder import Identity, Places, Watch, identity
from .inbox import MAX_FDS
from .keeper import NOT_FOR_A_STANDBY
from .loop import Wake, ignore_end, milliseconds, reap
from .processes import PREFIX, started
from .service import Service
from .shared_forkserver import NAME, SharedForkserver

FILES = MAX_STORED + MAX_FDS + 64 + (1 << 16)
"""Open files that are wanted: as many as one device may have stored, and far more in all."""
FORKS_A_TURN = 4
"""Masters that are started before others are heard."""
SETTLE_S = 0.3
"""Seconds without a change in a folder after which it is looked at: an editor puts a file away for
a moment.
"""


class Fleet:
    """Keeps the devices of these places. `command` is `vuproc run` without what it is to serve."""

    def __init__(self, places: list[str], command: list[str]) -> None:
        self._places = Places(places)
        self._paths = places
        self._command = command
        self._output = ErrorOutput(PREFIX)
        self._forkserver = SharedForkserver(self._start_forkserver, self._say)
        self._devices: dict[str, FleetDevice] = {}
        self._seen: dict[str, Identity | None] = {}
        self._stopping = False
        self._look_at: float | None = None
        self._wrong: list[str] = []
        self._poller = select.poll()
        self._by_number: dict[int, FleetDevice] = {}
        self._clients: dict[int, socket.socket] = {}
        self._watch = Watch(self._places.folders)
        self._control = self._controlled()
        self._coming = -1
        self._touched: set[FleetDevice] = set()
        """Something has happened to these since they were tended."""
        self._due_at: dict[FleetDevice, float] = {}

    def run(self) -> int:
        """Until the end; returns the exit code."""
        wake = Wake(FILES)
        service = Service()
        self._poller.register(wake, select.POLLIN)
        if self._watch.works:
            self._poller.register(self._watch, select.POLLIN)
        if self._control is not None:
            self._poller.register(self._control, select.POLLIN)
        self._look(again=True)
        code = 0
        while self._devices or (self._places.folders and not self._stopping):
            self._poll_coming()
            for number, _ in self._poller.poll(self._patience(service)):
                self._readable(number)
            for number in wake.take():
                self._signalled(number)
            reap(self._hear_last, self._ended)
            code = max(code, self._tend())
            service.tell(self._summary, self._settled)
        service.stopping()
        self._forkserver.discard()
        ignore_end()
        return code

    def _patience(self, service: Service) -> float | None:
        if self._touched or self._next():
            return 0.0
        waits = [self._output.due(), self._forkserver.due(), service.due()]
        now = time.monotonic()
        at = [*self._due_at.values(), *([] if self._look_at is None else [self._look_at])]
        if at:
            waits.append(min(at) - now)
        return milliseconds([wait for wait in waits if wait is not None])

    def _readable(self, number: int) -> None:
        if number in self._by_number:
            self._touched.add(self._by_number[number])
            self._by_number[number].hear()
        elif number == self._coming:
            self._leave_coming()
            self._forkserver.hear()
        elif self._watch.works and number == self._watch.fileno():
            if self._watch.take():
                self._look_at = time.monotonic() + SETTLE_S
        elif self._control is not None and number == self._control.fileno():
            self._accept(self._control)
        elif self._control is not None and number in self._clients:
            self._answer(self._control, number)

    def _poll_coming(self) -> None:
        """The socket of the next shared forkserver is another each time."""
        channel = self._forkserver.coming
        if channel is not None and self._coming < 0:
            self._coming = channel.fileno()
            self._poller.register(self._coming, select.POLLIN)

    def _leave_coming(self) -> None:
        """It may be closed now, and its number be another's."""
        if self._coming >= 0:
            self._poller.unregister(self._coming)
            self._coming = -1

    def _tend(self) -> int:
        """Do what is due; the worst exit code of the devices that are over, if it is to be ours."""
        self._output.say_lost()
        self._forkserver.tend()
        now = time.monotonic()
        if self._look_at is not None and now >= self._look_at:
            self._look(again=False)
        for device in self._next():
            device.go_on()
            self._touched.add(device)
        due = [device for device, at in self._due_at.items() if at <= now]
        touched, self._touched = self._touched.union(due), set()
        return max([0, *map(self._tend_one, touched)])

    def _next(self) -> list[FleetDevice]:
        """The devices whose masters may be started now, at most so many."""
        if not (self._forkserver.ready or self._forkserver.is_of_no_use):
            return []
        # One that ends may have the socket that the next wants, under another name.
        if any(each.removed for each in self._devices.values()):
            return []
        waiting = (each for each in self._devices.values() if each.waits)
        return list(itertools.islice(waiting, FORKS_A_TURN))

    def _tend_one(self, device: FleetDevice) -> int:
        device.tend()
        due = device.due()
        self._due_at.pop(device, None)
        if due is not None:
            self._due_at[device] = time.monotonic() + due
        if not device.over:
            return 0
        if device.code and not device.said:
            device.said = True
            self._say(f"{device.name}: not served: it ended with exit code {device.code}")
        if not (device.removed or self._stopping or not self._places.folders):
            return 0
        self._forget(device)
        return 0 if self._places.folders else device.code or 0

    # Its devices.

    def _look(self, *, again: bool) -> list[str]:
        """Look at the folders, and do what has changed; in words. `again`: a device that has ended
        is started even if its file is as it was.
        """
        self._look_at = None
        if self._stopping:
            return []
        try:
            files, wrong = self._places.files()
        except OSError as error:
            said = f"{error.filename}: {error.strerror}; the devices go on"
            self._say(said)
            return [said]
        for line in wrong:
            if line not in self._wrong:
                self._say(line)
        self._wrong = wrong
        lines = list(wrong)
        for name, device in list(self._devices.items()):
            if not device.removed and files.get(name) != device.file:
                lines.append(f"{name}: its file is gone")
                self._remove(device)
        for name, path in files.items():
            seen = identity(path)
            old = self._devices.get(name)
            if old is not None and old.over and (again or seen != self._seen.get(path)):
                self._forget(old)
                old = None
                lines.append(f"{name}: started again")
            elif old is not None and old.away and (again or seen != self._seen.get(path)):
                old.try_now()
                self._touched.add(old)
                self._seen[path] = seen
                lines.append(f"{name}: tried again")
            elif old is None:
                lines.append(f"{name}: started")
            if old is None:
                self._add(name, path)
                self._seen[path] = seen
        return lines

    def _add(self, name: str, path: str) -> None:
        device = FleetDevice(name, path, self._command, self._forkserver, self._output)
        self._devices[name] = device
        self._touched.add(device)
        self._by_number[device.inbox.fileno()] = device
        self._poller.register(device.inbox, select.POLLIN)

    def _remove(self, device: FleetDevice) -> None:
        if device.over:
            self._forget(device)
            return
        self._say(f"{device.name}: its file is gone: it ends")
        device.removed = True
        device.signalled(signal.SIGTERM)
        self._touched.add(device)

    def _forget(self, device: FleetDevice) -> None:
        del self._devices[device.name], self._by_number[device.inbox.fileno()]
        self._poller.unregister(device.inbox)
        self._due_at.pop(device, None)
        self._touched.discard(device)
        device.close()
        if device.removed:
            self._look_at = time.monotonic()  # its file may be back

    # Processes and signals.

    def _start_forkserver(self, channel: int) -> int:
        return started(
            [*self._command, *self._paths],
            [(NAME, channel)],
            dict(os.environ),
            at_our_end=signal.SIGKILL,
            ignoring=NOT_FOR_A_STANDBY,
        )

    def _hear_last(self, pid: int) -> None:
        for device in self._devices.values():
            if device.master == pid:
                device.hear()

    def _ended(self, pid: int, code: int) -> None:
        if pid in self._forkserver.pids:
            self._leave_coming()
            self._forkserver.ended(pid, code)
            return
        for device in self._devices.values():
            if device.master == pid:
                device.master_ended(code)
            # An orphan of its may have been what it waits for.
            if device.master == 0:
                self._touched.add(device)

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
        if number == signal.SIGHUP:
            self._look(again=True)
        if number == signal.SIGUSR2:
            self._forkserver.renew()
        for device in self._devices.values():
            if device.up or (self._stopping and not device.over):
                device.signalled(number)
            self._touched.add(device)

    # What is said of it.

    def _controlled(self) -> Control | None:
        if len(self._places.folders) != 1:
            return None
        verbs = {"status": self._status, "reload": self._reload, "stop": self._stop}
        try:
            return Control(self._places.folders[0], verbs, ("stop",))
        except OSError as error:
            self._say(f"{self._places.folders[0]} is served already: {error.strerror}")
            sys.exit(1)

    def _accept(self, control: Control) -> None:
        client = control.accept()
        if client is not None:
            self._clients[client.fileno()] = client
            self._poller.register(client, select.POLLIN)
        if (surplus := control.surplus()) is not None:
            self._drop(control, surplus.fileno())

    def _answer(self, control: Control, number: int) -> None:
        if not control.hear(self._clients[number]):
            self._drop(control, number)

    def _drop(self, control: Control, number: int) -> None:
        self._poller.unregister(number)
        control.drop(self._clients.pop(number))

    def _status(self) -> dict[str, object]:
        devices = [
            {"name": each.name, "file": each.file, "state": each.state, "code": each.code}
            for each in self._devices.values()
        ]
        return {"pid": os.getpid(), "devices": devices, "wrong": self._wrong}

    def _reload(self) -> dict[str, object]:
        running = [each.name for each in self._devices.values() if each.up]
        lines = self._look(again=True)
        still = {each.name: each for each in self._devices.values() if each.up}
        return {
            "lines": lines,
            "running": [still[name].file for name in running if name in still],
        }

    def _stop(self) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"pid": os.getpid()}

    def _settled(self) -> bool:
        """Every device has come up, waits for what is away, or has failed."""
        return all(each.up or each.away or each.over for each in self._devices.values())

    def _summary(self) -> str:
        said = f"{sum(each.up for each in self._devices.values())} devices"
        for state in ("waiting", "failed"):
            names = [each.name for each in self._devices.values() if each.state == state]
            if names:
                said += f", {state}: {' '.join(names)}"
        return said

    def _say(self, text: str) -> None:
        self._output.write(PREFIX + text)
