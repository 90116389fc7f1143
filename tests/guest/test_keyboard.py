"""A keyboard written by an author, and Linux's driver for it under QEMU: a configuration space in
which the driver selects what it reads, and events that the device sends unasked.

QEMU 7.2 refuses this device where there is no KVM.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.devices.keyboard import EV_KEY, EV_LED, EV_SYN, IDS, Keyboard
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.testing import serve
from vuproc.testing.vms import Qemu, VhostUserDevice, boot_qemu

pytestmark = pytest.mark.timeout(120)

KEY_A, KEY_B = 30, 48
INPUT_EVENT = struct.Struct("<16xHHi")
"""input_event of 64-bit Linux: a time, then type, code and value."""
LIGHT = "".join(f"\\{byte:03o}" for byte in struct.pack("<16xHHi", EV_LED, 1, 1))

# What the driver has read of the configuration space, and then two keys from its device file.
SCRIPT = f"""
for input in /sys/class/input/input*; do
    if [ "$(cat $input/name)" = "vuproc keyboard" ]; then
        say found yes
        say serial $(cat $input/uniq)
        say ids $(cat $input/id/bustype $input/id/vendor $input/id/product $input/id/version)
        say keys $(cat $input/capabilities/key)
        say lights $(cat $input/capabilities/led)
        device=/dev/input/$(basename $input/event*)
    fi
done
exec 3<>$device
for turn in first second; do
    say ready $turn
    say $turn $(dd bs={INPUT_EVENT.size} count=4 <&3 2>/dev/null | hexdump -v -e '1/1 "%02x"')
done
printf '{LIGHT}' >&3
say lit yes
"""


def typed(key: int) -> list[tuple[int, ...]]:
    return [(EV_KEY, key, 1), (EV_SYN, 0, 0), (EV_KEY, key, 0), (EV_SYN, 0, 0)]


@pytest.mark.proves("SET_CONFIG", front_end="QEMU 10.0")
@pytest.mark.parametrize("qemu", newer())
def test_linux_reads_what_it_is_and_what_is_typed(
    tmp_path: Path, qemu: Qemu, shown: Callable[[Iterable[str]], None]
) -> None:
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    modules = ("virtio_pci", "virtio_input", "evdev")
    with (
        serve(
            Keyboard, keys=str(keys), queue_size=QUEUE_SIZE, file={"log_level": "debug"}
        ) as served,
        open(keys, "r+b", buffering=0) as pipe,
    ):
        keyboard = VhostUserDevice(socket=served.socket, driver="vhost-user-input-pci")
        with boot_qemu([keyboard], script=SCRIPT, modules=modules, qemu=qemu) as guest:
            guest.wait_for("ready=first")
            pipe.write(bytes([KEY_A]))
            guest.wait_for("ready=second")
            killed = served.kill_worker()
            served.wait_worker(other_than=killed)
            pipe.write(bytes([KEY_B]))
            served.wait_for_line("light 1 is on")
            said = guest.finish().values
    assert (said["found"], said["serial"]) == ("yes", "no. 17")
    assert tuple(int(part, 16) for part in said["ids"].split()) == IDS
    assert (said["keys"], said["lights"]) == ("ffffffffffffffff fffffffffffffffe", "7")
    for name, key in (("first", KEY_A), ("second", KEY_B)):
        assert list(INPUT_EVENT.iter_unpack(bytes.fromhex(said[name]))) == typed(key)
    assert not [line for line in served.lines if "ERROR" in line]
    shown(served.lines)
