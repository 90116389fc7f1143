"""A guest's process with its descendants: output, bounded waits, an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.errors import GuestFailed

# How long the kernel may take to end a killed process: it has to give back a guest's memory.
KILL_TIMEOUT_S = 10.0
LAST_BREATH_S = 1.0
CHUNK = 65536


def family(leader: int) -> list[int]:
    """The processes of `leader`'s session and all descendants, without `leader`.

    By session since a child whose parent has died is nobody's descendant any more.
    """
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        # The process may end while we look. Its name may hold anything, so fields start behind it.
        with contextlib.suppress(OSError):
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(fields[1])
            if int(fields[3]) == leader:
                members.add(int(entry))
    members.add(leader)
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    return sorted(members - {leader})


class GuestProcess(Ending):
    """A child in a session of its own, with standard output and error in one stream of lines.

    A context manager: at its end the child and every descendant are dead. `lines` holds what was
    printed so far. Waits raise `GuestFailed` with these lines when their time is over. With `typed`
    the child reads what `type` writes, otherwise nothing.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        typed: bool = False,
    ) -> None:
        self.name = Path(command[0]).name
        self.lines: list[str] = []
        self._partial = b""
        self._seen = 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if typed else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @contextlib.contextmanager
    def watch(self) -> Iterator[int]:
        """A descriptor that becomes readable when the child ends."""
        pidfd = os.pidfd_open(self.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)

    def type(self, line: str) -> None:
        """Write one line to the child's standard input. `GuestFailed` if it does not read any."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed(f"it does not read {line!r}", time.monotonic()) from None

    def wait_for(self, wanted: Callable[[str], bool], timeout_s: float, what: str) -> str:
        """The next line for which `wanted` holds. Each line is looked at by one wait only."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if wanted(line):
                    return line
            if not self._read(deadline):
                raise self._failed(f"waited {timeout_s:g} s for {what}", deadline)

    def wait(self, timeout_s: float) -> int:
        """The exit code, after all output was read."""
        deadline = time.monotonic() + timeout_s
        if self._process.returncode is None:
            with self.watch() as ended:
                # Not until the output's end: a descendant may outlive the child and hold it open.
                while not _readable(ended, 0.0) and self._read(deadline, ended):
                    pass
                if not _readable(ended, deadline):
                    raise self._failed(f"waited {timeout_s:g} s for its end", deadline)
        self.take_in()
        return self._process.wait()

    def take_in(self) -> None:
        """Adds what was printed meanwhile to `lines`; does not wait for more."""
        while self._read(0.0):
            pass

    def kill(self) -> None:
        """SIGKILL to the child and each of its family, by pid; returns when all are gone."""
        living = [self.pid] if self._process.poll() is None else []
        _kill_all([*living, *family(self.pid)])
        self._process.wait(KILL_TIMEOUT_S)
        # What was forked between the look and the kill is in the session still.
        _kill_all(family(self.pid))
        self.take_in()
        self._output.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _read(self, deadline: float, *others: int) -> bool:
        """Takes in some output; False at its end or when the time is over. `others` wake it too."""
        if self._output.closed or not _readable(self._output.fileno(), deadline, *others):
            return False
        try:
            chunk = os.read(self._output.fileno(), CHUNK)
        except BlockingIOError:
            return bool(others)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self.lines += [line.decode(errors="replace").rstrip("\r") for line in lines]
        return bool(chunk)

    def _failed(self, what: str, deadline: float) -> GuestFailed:
        early = time.monotonic() < deadline
        try:
            # A child that dies closes its output a moment before it is gone.
            ended = self._process.wait(LAST_BREATH_S if early else 0.0)
            what += f", but it ended with exit code {ended}"
        except subprocess.TimeoutExpired:
            what += ", but it closed its output" if early else ""
        return GuestFailed(f"{self.name} (pid {self.pid}): {what}", self.lines)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _readable(fd: int, deadline: float, *others: int) -> bool:
    """Waits until `fd` or one of `others` is readable or hung up, at most until `deadline`."""
    poll = select.poll()
    for each in (fd, *others):
        poll.register(each, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _kill_all(pids: list[int]) -> None:
    """By pidfd, which cannot come to name a stranger that got the same number meanwhile."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    pidfds = [pidfd for pid in pids if (pidfd := _pidfd(pid)) is not None]
    try:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            if not _readable(pidfd, deadline):
                raise GuestFailed(f"a killed process is still there after {KILL_TIMEOUT_S:g} s")
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
