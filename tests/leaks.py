"""What a test may leave behind: nothing. Counts open files, child processes, shared memory."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import select
import time
from dataclasses import dataclass

from vuproc.shm.segment import HEADER_BYTES, PREFIX

ORPHANS_DEADLINE = 20.0
"""Seconds in which the processes of a killed one must have ended, too."""
OWNER_DEADLINE = 5.0
"""Seconds in which somebody else's segment must have its owner's name in it, or be gone; and in
which a thread that has said its last word must have closed its files.
"""

_PR_SET_CHILD_SUBREAPER = 36
_SHM_ROOT = "/dev/shm"


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is overlooked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class Holdings:
    """What this process holds: open files by (number, what it is), children, segments."""

    files: frozenset[tuple[int, str]]
    children: frozenset[int]
    segments: frozenset[str]

    @staticmethod
    def now() -> Holdings:
        """Count."""
        return Holdings(frozenset(_files()), frozenset(_children()), frozenset(_segments()))

    def leaked(self) -> list[str]:
        """What is there now and was not then, in words; orphans that end soon are waited for."""
        deadline = time.monotonic() + ORPHANS_DEADLINE
        for pid in _children() - self.children:
            _await_end(pid, deadline)
        now = Holdings.now()
        deadline = time.monotonic() + OWNER_DEADLINE
        collected = False
        while now.segments - self.segments or now.files - self.files:
            if time.monotonic() >= deadline:
                break
            if not collected and now.files - self.files:
                # What nobody refers to any more is no leak. Seldom needed, and slow.
                gc.collect()
                collected = True
            select.select([], [], [], 0.02)
            now = Holdings.now()
        return [
            *(f"open file {number}: {target}" for number, target in sorted(now.files - self.files)),
            *(f"child {pid}: {_command(pid)}" for pid in sorted(now.children - self.children)),
            *(f"shared memory {name}" for name in sorted(now.segments - self.segments)),
        ]


def _files() -> set[tuple[int, str]]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add((int(entry), os.readlink(f"/proc/self/fd/{entry}")))
        except FileNotFoundError:
            continue  # the listing's own descriptor
    return found


def _children() -> set[int]:
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as children:
                found.update(int(pid) for pid in children.read().split())
        except FileNotFoundError:
            continue  # the thread has ended
    return found


def _await_end(pid: int, deadline: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # somebody else has waited for it
    finally:
        os.close(pidfd)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return command.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except FileNotFoundError:
        return "(ended)"


def _segments() -> set[str]:
    """The segments of vuproc but for those of living processes which are none of ours."""
    names = {name for name in os.listdir(_SHM_ROOT) if f"/{name}".startswith(PREFIX)}
    return {name for name in names if not _belongs_to_others(name)}


def _belongs_to_others(name: str) -> bool:
    try:
        with open(os.path.join(_SHM_ROOT, name), "rb") as segment:
            header = segment.read(HEADER_BYTES)
    except FileNotFoundError:
        return True  # gone since it was listed
    pid = int.from_bytes(header[12:16], "little")
    ancestor = pid
    try:
        while ancestor > 1:
            if ancestor == os.getpid():
                return False
            with open(f"/proc/{ancestor}/stat", "rb") as status:
                ancestor = int(status.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.exists(os.path.join(_SHM_ROOT, name))
    # The first process of a container; if it is one of ours, it is found as a child.
    return pid > 1 or _is_locked(name)


def _is_locked(name: str) -> bool:
    """Whether the owner of a segment lives."""
    try:
        with open(os.path.join(_SHM_ROOT, name), "rb") as segment:
            fcntl.flock(segment.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return True
    return False
