"""Machines that lack something: it is named, with what it is for and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.field import without_call
from tests.field.events import status
from tests.field.running import VUPROC, run_to_end, started, stop, wait_until, write_file
from vuproc.parking import SO_PEEK_OFF
from vuproc.testing.guest import Guest


def refusal(folder: Path, before: list[str]) -> str:
    """What `vuproc run` says after these words; it leaves nothing."""
    done = run_to_end([*before, *VUPROC, "run", write_file(folder)])
    if done.returncode == without_call.NO_FILTER:
        pytest.skip(f"no system call can be refused here: {done.stderr.strip()}")
    assert done.returncode == 1, done.stderr
    assert os.listdir(folder) == ["disk.yaml"]
    (line,) = done.stderr.splitlines()
    return line


def mounted(what: str) -> list[str]:
    """What goes before a command that is to find other file systems; skips where nobody may."""
    command = ["unshare", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("no command unshare")
    tried = run_to_end([*command, "sh", "-c", what])
    if tried.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")
    return [*command, "sh", "-c", f'{what} && exec "$@"', "sh"]


def test_b4_no_room_in_dev_shm(tmp_path: Path) -> None:
    full = "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    said = refusal(tmp_path, mounted(full))
    assert "bytes of shared memory /vuproc." in said
    assert said.endswith(
        "in /dev/shm: No space left on device; free some there, or mount it larger "
        "(docker run --shm-size)"
    )


def test_b4_no_dev_shm_that_can_be_written_to(tmp_path: Path) -> None:
    said = refusal(tmp_path, mounted("mount -t tmpfs -o ro none /dev/shm"))
    assert said.endswith(
        "in /dev/shm: Read-only file system; a tmpfs is wanted there that this user may write to"
    )


def test_b4_no_proc(tmp_path: Path) -> None:
    said = refusal(tmp_path, mounted("mount -t tmpfs none /proc"))
    assert "/proc wanted, but No such file or directory; vuproc takes it to tell what" in said
    assert said.endswith("mount it (mount -t proc proc /proc)")


def without(call: str, number: int, only: str = "") -> list[str]:
    """What goes before a command for which a call fails with this errno; `only`: with what."""
    numbers = without_call.NUMBERS.get(os.uname().machine)
    if numbers is None:
        pytest.skip(f"the numbers of system calls are not known for {os.uname().machine}")
    return [sys.executable, without_call.__file__, f"{numbers[call]}{only}", str(number)]


@pytest.mark.parametrize(
    ("call", "number"),
    [("memfd_create", errno.EPERM), ("pidfd_open", errno.ENOSYS), ("splice", errno.EPERM)],
)
def test_b4_a_system_call_that_is_refused(tmp_path: Path, call: str, number: int) -> None:
    said = refusal(tmp_path, without(call, number))
    assert f"{call}(2)" in said
    assert f"wanted, but {os.strerror(number)}; vuproc takes it" in said
    assert "seccomp" in said


def test_b4_without_so_peek_off_it_serves_and_outlives_a_master_between_messages(
    tmp_path: Path,
) -> None:
    """As under qemu-user. What it costs is said."""
    before = without("setsockopt", errno.ENOPROTOOPT, f":{SO_PEEK_OFF}")
    if run_to_end([*before, "true"]).returncode == without_call.NO_FILTER:
        pytest.skip("no system call can be refused here")
    path = tmp_path / "disk.sock"
    command = [*before, *VUPROC, "run", "--supervised", write_file(tmp_path)]
    with started(command) as process:
        wait_until(path.exists, process)
        with Guest(path) as guest:
            read = [bytes(16)], [512, 1]
            assert guest.do(0, *read).content == bytes(513)
            master = status(path)["pid"]
            os.kill(master, signal.SIGKILL)
            wait_until(lambda: status(path)["pid"] != master, process)
            assert guest.config()  # by the other master, over the same connection
            assert guest.do(0, *read).content == bytes(513)
        code, said = stop(process)
    assert code == 0, said
    assert "there is no SO_PEEK_OFF of Unix sockets here" in said
