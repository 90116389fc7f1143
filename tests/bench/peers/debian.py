"""Back-ends of others for file systems and sockets, out of Debian's packages: `deploy/peers`
unpacks them into the cache at their first use, since few systems have them.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.backends import Missing, Running, child
from vuproc.testing.vms import clients

FETCH_TIMEOUT_S = 300.0
SCRIPT = Path(__file__).parents[3] / "deploy" / "peers"
VIRTIOFSD_IN_C = Path("/usr/lib/qemu/virtiofsd")
"""What QEMU had before 8.0, in Debian's qemu-system-common."""


@contextmanager
def virtiofsd(directory: Path, socket: Path, tag: str) -> Iterator[Running]:
    """The one in Rust, without its sandbox and its filter of system calls, which would cost it
    something. Raises Missing.
    """
    alone = ["--sandbox=none", "--seccomp=none", "--log-level=error"]
    # Guests whose VMM does not say the tag are told by the device.
    places = f"--socket-path={socket}", f"--shared-dir={directory}", f"--tag={tag}"
    with child([program("virtiofsd"), *places, *alone], socket) as running:
        yield running


@contextmanager
def virtiofsd_in_c(directory: Path, socket: Path, _tag: str) -> Iterator[Running]:
    """The older one, which has a sandbox as it comes, and says no tag. Raises Missing."""
    if not VIRTIOFSD_IN_C.exists():
        raise Missing(f"there is no {VIRTIOFSD_IN_C} here")
    options = f"--socket-path={socket}", "-o", f"source={directory}", "-o", "log_level=err", "-f"
    with child([VIRTIOFSD_IN_C, *options], socket) as running:
        # It works in a child of its own, for its sandbox.
        yield Running(socket, lambda: [pid for own in running.pids() for pid in _family(own)])


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


@contextmanager
def vhost_device_vsock(path: Path, socket: Path, cid: int) -> Iterator[Running]:
    """The socket device in Rust, whose programs connect to `path` as to ours. Raises Missing."""
    options = f"--guest-cid={cid}", f"--socket={socket}", f"--uds-path={path}"
    with child([program("vhost-device-vsock"), *options], socket) as running:
        yield running


@functools.cache
def program(name: str) -> Path:
    """What runs it. Raises Missing."""
    found = clients.cache() / "bench" / name / "run"
    if found.exists():
        return found
    try:
        done = subprocess.run(
            ["sh", SCRIPT, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            env={**os.environ, "VUPROC_CACHE": str(clients.cache())},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"it was not to be had in {FETCH_TIMEOUT_S:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["deploy/peers failed"]
        raise Missing(said[0])
    return found
