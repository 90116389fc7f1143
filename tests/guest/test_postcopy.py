"""A guest moves by postcopy: it runs at its destination before its memory is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest import load
from tests.guest.qemus import QUEUE_SIZE, newer
from tests.guest.test_migration import CPUS, LARGE, Linux, boot_on, move
from vuproc.testing.serve import serve
from vuproc.testing.vms import Qemu

pytestmark = pytest.mark.timeout(360)

FILE = {"postcopy": True, "log_level": "debug"}


def by_postcopy(left: Linux, start: Callable[..., Linux]) -> Linux:
    other = start()
    try:
        left.finish_by_postcopy(other)
    except BaseException:
        other.kill()
        raise
    return other


@pytest.mark.proves(
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "PROTOCOL_F_PAGEFAULT",
    front_end="QEMU 10.0",
)
@pytest.mark.parametrize("engine", ["io_uring", *load.in_long_form("auto")])
@pytest.mark.parametrize("version", newer())
def test_a_guest_moves_forth_and_back_by_postcopy(
    tmp_path: Path, version: Qemu, engine: str, shown: Callable[[Iterable[str]], None]
) -> None:
    image, device = load.new_disk(tmp_path, CPUS, engine)
    device |= {"locking": "off", "queue_size": QUEUE_SIZE}
    with serve(device, file=FILE) as one, serve(device, file=FILE) as two:
        boots = [boot_on(each, False, version, LARGE) for each in (one, two, one)]
        report = move(tmp_path, boots, by_postcopy)
        for served in (one, two):
            shown(served.lines)
            assert any("GuardMemory" in line for line in served.lines)
    load.check(report, image, load.qemu)
