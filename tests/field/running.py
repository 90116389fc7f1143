"""`vuproc run` started in unusual ways: by any command, looked at from outside alone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.appearing import Ended, await_path

BOUND_S = 40.0
LOOK_S = 0.002
"""Pause between two looks at what nothing announces."""
VUPROC = (sys.executable, "-m", "vuproc")
DISK = {"type": "blk", "ram": "1MiB"}


def write_file(folder: Path, **more: Any) -> Path:
    """A device file for a small disk at `disk.sock` beside it; `more` goes over its keys."""
    path = folder / "disk.yaml"
    path.write_text(json.dumps({"socket": "./disk.sock", "device": DISK, **more}))
    return path


def environment() -> dict[str, str]:
    """Ours, with this vuproc found by all that is started from here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, with its standard error in a pipe if nothing else is said; killed at the end if it
    has not ended by then.
    """
    given: dict[str, Any] = {"stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    given |= {"env": environment(), **options}
    with subprocess.Popen([str(word) for word in command], text=True, **given) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    """SIGTERM; the exit code, and what was said on standard error if that is in a pipe."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=BOUND_S)
    return process.returncode, said or ""


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Look until it holds; fails after a while, or when the process has ended."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {stop(process)[1]}")
        select.select([], [], [], LOOK_S)


def await_made(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has made it; fails if it ends before, with what it has said."""
    try:
        await_path(path, BOUND_S, process.pid)
    except Ended:
        raise AssertionError(f"ended with {process.wait(BOUND_S)}: {stop(process)[1]}") from None


def run_to_end(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, with all that it says."""
    given: dict[str, Any] = {"capture_output": True, "stdin": subprocess.DEVNULL}
    given |= {"env": environment(), **options}
    words = [str(word) for word in command]
    return subprocess.run(words, text=True, timeout=BOUND_S, check=False, **given)


def children(pid: int) -> list[int]:
    """The processes that a process has started and not waited for."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    found = children(pid)
    return found + [later for child in found for later in descendants(child)]


def ended(pidfd: int) -> bool:
    """Wait until the process has ended, and close its pidfd."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return bool(poller.poll(BOUND_S * 1000))
    finally:
        os.close(pidfd)
