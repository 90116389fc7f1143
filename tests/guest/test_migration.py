"""A guest moves from one QEMU to another and back, with its disk in use."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.guest import load
from tests.guest.migrating import Machine, tell
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import Qemu, clients
from vuproc.testing.vms.linux import LinuxGuest, Report

pytestmark = pytest.mark.timeout(360)

CPUS = 2
VERBOSE = ["--log-level", "debug"]
LARGE: Mapping[str, str | int] = MappingProxyType({"queue-size": QUEUE_SIZE})
INFLIGHT: Mapping[str, str | int] = MappingProxyType({**LARGE, "inflight-migration": "on"})
"""What has QEMU 11 move the in-flight records, and not wait for them."""
HAS_INFLIGHT = (11, 0)

Boot = Callable[[list[str]], LinuxGuest]
Linux = Machine[LinuxGuest]


def boot_on(
    served: Served,
    packed: bool,
    version: Qemu = Qemu.INSTALLED,
    properties: Mapping[str, str | int] = MappingProxyType({}),
) -> Boot:
    """A way to boot on this disk."""
    return lambda extra: load.qemu_until_told(
        served.socket, extra, packed=packed, version=version, properties=properties
    )


def live(left: Linux, start: Callable[..., Linux]) -> Linux:
    """Into a machine that waits for it."""
    other = start()
    left.migrate_to(other)
    return other


def move(
    folder: Path, boots: Sequence[Boot], how: Callable[[Linux, Callable[..., Linux]], Linux] = live
) -> Report:
    """A guest under load that goes from one machine to the next; what it says at the end.

    `how` takes it out of one machine, and into another that it is to start.
    """
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(folder / "0", boots[0]))
        machine.guest.wait_for(load.BEGINS)
        for _ in range(CPUS):
            machine.guest.wait_for("pass=1")
        for number, boot in enumerate(boots[1:], 1):
            left, home = machine, folder / str(number)
            machine = stack.enter_context(
                how(left, functools.partial(Linux, home, boot, waits=True))
            )
            assert not left.guest.said("different")
            left.kill()
            machine.guest.wait_for("pass=")
        tell(machine)
        return machine.guest.finish()


@pytest.mark.proves(
    "SET_LOG_BASE",
    "PROTOCOL_F_LOG_SHMFD",
    "VHOST_F_LOG_ALL",
    front_end="QEMU 7.2",
)
@pytest.mark.parametrize("packed", [True, *load.in_long_form(False)])
def test_a_guest_that_reads_and_writes_moves_forth_and_back(
    tmp_path: Path, packed: bool, shown: Callable[[Iterable[str]], None]
) -> None:
    image, device = load.new_disk(tmp_path, CPUS, "auto")
    # Both have it open at the same time, and only one is told to serve it.
    device["locking"] = "off"
    with serve(device, arguments=VERBOSE) as one, serve(device, arguments=VERBOSE) as two:
        boots = [boot_on(each, packed) for each in (one, two, one)]
        report = move(tmp_path, boots)
        for served in (one, two):
            shown(served.lines)
    load.check(report, image, load.packed if packed else load.qemu)


@pytest.mark.parametrize("version", newer())
def test_it_moves_forth_back_and_forth_between_newer_ones(tmp_path: Path, version: Qemu) -> None:
    """On slow storage, and with what is in flight there if QEMU can move that."""
    image, device = load.new_disk(tmp_path, CPUS, load.SLOW)
    device |= {"locking": "off", "queue_size": QUEUE_SIZE}
    moves = clients.qemu_version(clients.qemu(version)) >= HAS_INFLIGHT
    properties = INFLIGHT if moves else LARGE
    with serve(device, arguments=VERBOSE) as one, serve(device, arguments=VERBOSE) as two:
        boots = [boot_on(each, False, version, properties) for each in (one, two, one, two)]
        report = move(tmp_path, boots)
        left = [number for each in (one, two) for number in left_in_flight(each.lines)]
    load.check(report, image, load.qemu)
    assert bool(left) == moves, left
    print(f"requests that were left in flight: {left}")


LEFT = re.compile(r"(\d+) requests are left in flight")


def left_in_flight(lines: Sequence[str]) -> list[int]:
    """How many requests each ring had that was stopped without a wait for them."""
    return [int(found[1]) for line in lines if (found := LEFT.search(line))]


@pytest.mark.parametrize("version", newer())
def test_a_guest_outlives_its_qemu_in_a_file(tmp_path: Path, version: Qemu) -> None:
    """QEMU's cpr-reboot: the vuproc stays, and another QEMU goes on with its disk."""
    image, device = load.new_disk(tmp_path, CPUS, "auto")
    device["queue_size"] = QUEUE_SIZE
    file = tmp_path / "guest"

    def by_file(left: Linux, start: Callable[..., Linux]) -> Linux:
        left.reboot_into(file)
        left.kill()
        other = start()
        other.come_from(file)
        return other

    with serve(device) as served:
        report = move(tmp_path, [boot_on(served, False, version, LARGE)] * 2, by_file)
    load.check(report, image, load.qemu)


@pytest.mark.parametrize("version", newer())
def test_a_guest_is_given_to_another_qemu(tmp_path: Path, version: Qemu) -> None:
    """QEMU's cpr-transfer: memory stays where it is, and another vuproc goes on with the disk."""
    image, device = load.new_disk(tmp_path, CPUS, "auto")
    device |= {"locking": "off", "queue_size": QUEUE_SIZE}

    def given(left: Linux, start: Callable[..., Linux]) -> Linux:
        other = start(waits=False, is_given=True)
        try:
            left.transfer_to(other)
        except BaseException:
            other.kill()
            raise
        return other

    with serve(device) as one, serve(device) as two:
        boots = [sharing_all(boot_on(each, False, version, LARGE)) for each in (one, two, one)]
        report = move(tmp_path, boots, given)
    load.check(report, image, load.qemu)


def sharing_all(boot: Boot) -> Boot:
    """Another QEMU may have all of its memory, not only the guest's."""
    return lambda extra: boot(["-machine", "aux-ram-share=on", *extra])
