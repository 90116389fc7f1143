"""Where a kernel or a container lacks a part of the sandbox: the rest is there, and it is said once
what is not.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from tests.field import without_call
from tests.field.running import VUPROC, environment, started, stop, wait_until
from vuproc.ops.admin import Request, ask
from vuproc.ops.status import Status
from vuproc.spec.system_calls import numbers
from vuproc.testing.guest import Guest

import msgspec  # isort: skip

LACKING = [
    ("landlock_create_ruleset", errno.ENOSYS, ["files (Landlock): Function not implemented"]),
    ("landlock_create_ruleset", errno.EOPNOTSUPP, ["files (Landlock): Operation not supported"]),
    ("unshare", errno.EPERM, ["user namespace: Operation not permitted"]),
    (
        "seccomp",
        errno.ENOSYS,
        [
            "filter of system calls (seccomp), in the master: Function not implemented",
            "filter of system calls (seccomp): Function not implemented",
        ],
    ),
]


@pytest.mark.parametrize(("call", "number", "lacks"), LACKING)
@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_it_serves_without_a_part_and_says_which(
    tmp_path: Path, call: str, number: int, lacks: list[str], mode: str
) -> None:
    if not numbers():
        pytest.skip(f"the numbers of system calls are not known for {os.uname().machine}")
    file = tmp_path / "rng.yaml"
    socket = tmp_path / "rng.sock"
    file.write_text(f"socket: {socket}\ndevice: {{type: rng}}\nsandbox: {mode}\n")
    refused = [sys.executable, without_call.__file__, str(numbers()[call]), str(number)]
    with started([*refused, *VUPROC, "run", file], env=environment()) as process:
        wait_until(lambda: socket.exists() or process.poll() is not None, process)
        with Guest(socket) as guest:
            assert len(guest.do(0, [], [16]).content) == 16
            status = msgspec.convert(ask(socket, Request("status")), Status)
        code, said = stop(process)
    assert code == 0
    assert status.sandbox_lacks == lacks
    for lack in lacks:
        assert said.count(f"sandbox: without {lack}; see docs/sandbox.md") == 1
        assert f"; without {lack}" in status.table()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    file, socket, away = tmp_path / "rng.yaml", tmp_path / "rng.sock", tmp_path / "away"
    file.write_text(f"socket: {socket}\ndevice: {{type: rng}}\nsandbox: {{files: [{away}]}}\n")
    with started([*VUPROC, "run", file], env=environment()) as process:
        wait_until(lambda: socket.exists() or process.poll() is not None, process)
        wait_until(lambda: bool(_lacks(socket)), process)
        lacks = _lacks(socket)
        _, said = stop(process)
    assert lacks == [f"{away}: not there, so out of reach"]
    assert said.count(f"sandbox: without {away}: not there") == 1


def _lacks(socket: Path) -> list[str]:
    return msgspec.convert(ask(socket, Request("status")), Status).sandbox_lacks
