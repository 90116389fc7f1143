"""A second process at the memory of a test's guest, for as long as the test looks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.shm.guest import Guest

END_S = 30


@contextmanager
def beside(guest: Guest, script: str, *arguments: int, fds: tuple[int, ...] = ()) -> Iterator[None]:
    """`script` of this folder runs with the guest's memory and `arguments` till its input ends.

    fds: descriptors that it is given, too, by their numbers.
    """
    path = Path(__file__).with_name(script)
    with subprocess.Popen(
        [sys.executable, str(path), *map(str, (guest.fd, *arguments))],
        pass_fds=[guest.fd, *fds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(END_S) == 0
        finally:
            process.kill()
