"""Disks that systemd has served, and the driver at the other end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.checked_io import checked_io
from tests.systemd.inside.manager import BOUND_S, ctl, dropped_in, prop, run
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest

ETC = Path("/etc/vuproc")
RUN = Path("/run/vuproc")
IMAGES = Path("/var/lib/vuproc")
SIZE = 4 << 20
OWNED = ("vmms", "disks")
"""Disks of users of their own."""


def device_file(
    name: str,
    *,
    extra: str = "",
    options: str = "",
    size: int = SIZE,
    kept: bool = False,
    owner: str = "root",
) -> Path:
    """Writes the device file of a disk of two queues; and its image, unless that is kept."""
    path, image = ETC / f"{name}.yaml", IMAGES / f"{name}.raw"
    IMAGES.mkdir(exist_ok=True)
    if not kept:
        with open(image, "ab") as file:
            file.truncate(size)
        shutil.chown(image, owner)
    path.write_text(
        f"socket: {socket_of(name)}\n{extra}device:\n  type: blk\n"
        f"  image: {image}\n  queues: 2\n{options}"
    )
    shutil.chown(path, owner)
    return path


@contextlib.contextmanager
def disk(
    name: str, *, extra: str = "", options: str = "", conf: str = "", owner: str = "root"
) -> Iterator[str]:
    """A device file whose unit, with a drop-in if there is one, is started; at the end all of it
    is gone.
    """
    path = device_file(name, extra=extra, options=options, owner=owner)
    unit = f"vuproc@{name}.service"
    with dropped_in(unit, conf) if conf else contextlib.nullcontext():
        try:
            ctl("start", unit)
            yield unit
        finally:
            ctl("stop", unit)
            path.unlink()
            (IMAGES / f"{name}.raw").unlink()
    assert prop(unit, "ActiveState") == "inactive"


def socket_of(name: str) -> Path:
    """Where a disk of `device_file` is met: in a folder of its own if its user is not root."""
    return (RUN / name if name in OWNED else RUN) / f"{name}.sock"


def status(name: str) -> dict[str, Any]:
    """What `vuproc status --json` says."""
    found = json.loads(run("vuproc", "status", "--json", str(ETC / f"{name}.yaml")))
    assert isinstance(found, dict)
    return found


@contextlib.contextmanager
def driver(name: str) -> Iterator[Guest]:
    """A VMM with a driver of two queues."""
    with Guest(socket_of(name), queues=2, memory=16 << 20, timeout_s=BOUND_S) as guest:
        yield guest


def under_load(guest: Guest) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Writes and reads on both queues, each block checked; what is given waits for a round more."""
    half = SIZE // 2
    return checked_io(guest, queues=2, apart=half, span=half, count=256, bound_s=BOUND_S)


def reads_and_writes(guest: Guest) -> None:
    """A block on each queue, written and read back."""
    block = Block(guest)
    for queue in (0, 1):
        data = os.urandom(4096)
        block.write(8 * queue, data, queue=queue)
        assert block.read(8 * queue, len(data), queue=queue) == data
