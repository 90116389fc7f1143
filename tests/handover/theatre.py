"""The keeper as a process, with puppets in the place of masters."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vuproc.handover.keeper import PROGRAM

BOUND_S = 20.0

PUPPET = """
import array, ctypes, json, os, signal, socket, sys
strings = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
strings.connect(sys.argv[1])
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
def tell(text, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    notify.sendmsg([text.encode()], rights, 0, address)
def heard(number, frame):
    strings.send(json.dumps(["signal", number]).encode())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
    signal.signal(number, heard)
blocked = sorted(signal.pthread_sigmask(signal.SIG_SETMASK, []))
names = os.environ.get("LISTEN_FDNAMES", "").split(":")
count = int(os.environ.get("LISTEN_FDS", "0"))
def content(name, number):
    return "" if name == "standby" else os.pread(number, 100, 0).decode()
contents = [content(names[at], 3 + at) for at in range(count)]
mine = os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid())
watched = os.environ["WATCHDOG_PID"] == str(os.getpid()) and os.environ["WATCHDOG_USEC"]
hello = [os.getpid(), list(zip(names, contents)), mine, watched, blocked]
strings.send(json.dumps(hello).encode())
while True:
    verb, *rest = json.loads(strings.recv(65536) or '["exit", 9]')
    if verb == "tell":
        tell(rest[0])
    elif verb == "store":
        for name, content in rest:
            fd = os.memfd_create("stored")
            os.write(fd, content.encode())
            tell(f"FDSTORE=1\\nFDNAME={name}\\nFDPOLL=0", fd)
            os.close(fd)
    elif verb == "store-and-die":
        fd = os.memfd_create("stored")
        os.write(fd, b"last words")
        tell("FDSTORE=1\\nFDNAME=last", fd)
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "spawn":
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                strings.send(json.dumps(["child", os.getpid()]).encode())
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
    elif verb == "take":
        channel = socket.socket(fileno=3 + names.index("standby"))
        taken, left = [], 1
        while left:
            text, numbers, _, _ = socket.recv_fds(channel, 100000, 253)
            left, *each = text.decode().split(":")
            left = int(left)
            taken += [[name, content(name, number)] for name, number in zip(each, numbers)]
        strings.send(json.dumps(["took", taken]).encode())
    elif verb == "exit":
        os._exit(rest[0])
    strings.send(json.dumps("done").encode())
"""


class Puppet:
    """One master, by its strings."""

    def __init__(self, strings: socket.socket) -> None:
        self._strings = strings
        self.signals: list[int] = []
        """Those that it has told of and nobody has asked for."""
        self.pid, self.stored, self.announced_to_it, self.watched, self.blocked = self.hear()

    def hear(self) -> Any:
        """What it says, but for signals: those come when they like."""
        while True:
            word = json.loads(self._strings.recv(65536))
            if word[0] != "signal":
                return word
            self.signals.append(word[1])

    def signal(self) -> int:
        """The next signal that it gets."""
        while not self.signals:
            word = json.loads(self._strings.recv(65536))
            assert word[0] == "signal", word
            self.signals.append(word[1])
        return self.signals.pop(0)

    def send(self, *verb: object) -> None:
        self._strings.send(json.dumps(verb).encode())

    def do(self, *verb: object) -> None:
        self.send(*verb)
        assert self.hear() == "done"

    def ready(self) -> None:
        self.do("tell", "READY=1")

    def wish(self, wanted: bool) -> None:
        """Want a standby master, or none."""
        self.do("tell", f"X_VUPROC_STANDBY={int(wanted)}")

    def stands_by(self) -> None:
        """Say that it is ready, as a standby master."""
        self.do("tell", "X_VUPROC_STANDBY=ready")

    def take(self) -> Any:
        """Take over what is stored: names and contents."""
        self.send("take")
        word, taken = self.hear()
        assert word == "took" and self.hear() == "done"
        return taken

    def taken(self) -> None:
        """Say that it has taken over."""
        self.do("tell", "X_VUPROC_STANDBY=taken")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._strings.close()


class Theatre:
    """The keeper as a process, and the puppets that it starts one after the other."""

    def __init__(self, folder: Path, start: list[str], fds: tuple[int, ...] = ()) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(BOUND_S)
        self._listener.bind(str(folder / "strings"))
        self._listener.listen()
        self._puppets: list[Puppet] = []
        (folder / "puppet.py").write_text(PUPPET)
        command = [sys.executable, "-I", "-S", str(folder / "puppet.py"), str(folder / "strings")]
        self.process = subprocess.Popen(
            [*start, *command], stderr=subprocess.PIPE, text=True, pass_fds=fds
        )

    def next(self) -> Puppet:
        strings, _ = self._listener.accept()
        strings.settimeout(BOUND_S)
        self._puppets.append(Puppet(strings))
        return self._puppets[-1]

    def wait(self) -> int:
        return self.process.wait(BOUND_S)

    def log(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def fds(self) -> int:
        """How many it has; settled while a master is starting, which comes after all else."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        for puppet in self._puppets:
            puppet.close()
        self._listener.close()
        self.process.wait(BOUND_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


PATCHED = """
import sys
sys.path.append({path!r})
from keeper import __main__, keeper, standby
for name, value in {patches!r}.items():
    setattr(standby if hasattr(standby, name) else keeper, name, value)
sys.exit(__main__.main(sys.argv[1:]))
"""


@contextmanager
def playing(folder: Path, **patches: object) -> Iterator[Theatre]:
    """The keeper, with some of its constants changed."""
    program = folder / "patched.py"
    program.write_text(PATCHED.format(patches=patches, path=str(Path(PROGRAM).parent.parent)))
    theatre = Theatre(folder, [sys.executable, "-I", "-S", str(program)])
    try:
        yield theatre
    finally:
        theatre.close()


def ended(pid: int) -> bool:
    """Wait until a process has ended, or has gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(BOUND_S * 1000))
    finally:
        os.close(pidfd)
