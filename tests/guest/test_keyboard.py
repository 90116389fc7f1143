"""The input device, and Linux's driver for it under QEMU: a configuration space in which the driver
selects what it reads, and events that the device sends unasked.

QEMU 7.2 refuses this device where there is no KVM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.guest.deaths import ENOUGH, WorkerKiller, meanwhile
from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.spec.input import InputType
from vuproc.spec.input_codes import KEYS
from vuproc.testing import serve
from vuproc.testing.vms import Qemu, VhostUserDevice, boot_qemu

pytestmark = pytest.mark.timeout(120)

SYN, KEY, LED = InputType.SYN, InputType.KEY, InputType.LED
IDS = 6, 0, 0, 1
INPUT_EVENT = struct.Struct("<16xHHi")
"""input_event of 64-bit Linux: a time, then type, code and value."""
WORDS = "thequickbrownfoxjumpsoverthelazydog"
"""Typed while workers die."""
KEYS_A_DEATH = 2
"""Keys between two deaths of the worker. Linux keeps 64 events, those of 16 keys, for a reader that
is late.
"""
LIGHT = "".join(f"\\{byte:03o}" for byte in struct.pack("<16xHHi", LED, 1, 1))

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
say typing yes
dd bs={INPUT_EVENT.size} count={1 + 4 * len(WORDS)} <&3 2>/dev/null >/tmp/all
say all $(hexdump -v -e '1/1 "%02x"' /tmp/all)
"""


def typed(key: int) -> list[tuple[int, ...]]:
    return [(KEY, key, 1), (SYN, 0, 0), (KEY, key, 0), (SYN, 0, 0)]


def in_words(codes: Iterable[int]) -> str:
    """A bit for each, as sysfs shows it: the highest 64 first."""
    bits = sum(1 << code for code in codes)
    words = [bits >> at & (1 << 64) - 1 for at in range(0, bits.bit_length(), 64)]
    return " ".join(f"{word:x}" for word in reversed(words))


@pytest.mark.proves("SET_CONFIG", front_end="QEMU 10.0")
@pytest.mark.parametrize("qemu", newer())
def test_linux_reads_what_it_is_and_what_is_typed(
    tmp_path: Path, qemu: Qemu, shown: Callable[[Iterable[str]], None]
) -> None:
    keys = tmp_path / "keys"
    modules = ("virtio_pci", "virtio_input", "evdev")
    device = {
        "type": "input",
        "events": str(keys),
        "serial": "no. 17",
        "queue_size": QUEUE_SIZE,
    }
    with (
        serve(device, file={"log_level": "debug"}) as served,
        open(keys, "wb", buffering=0) as pipe,
    ):
        keyboard = VhostUserDevice(socket=served.socket, driver="vhost-user-input-pci")
        with boot_qemu([keyboard], script=SCRIPT, modules=modules, qemu=qemu) as guest:
            guest.wait_for("ready=first")
            pipe.write(b"key a\n")
            guest.wait_for("ready=second")
            killed = served.kill_worker()
            served.wait_worker(other_than=killed)
            pipe.write(b"key b\n")
            served.wait_for_line(f"status: type {LED:d}, code 1, value 1")
            guest.wait_for("typing")
            killer = WorkerKiller(served.socket)
            with meanwhile(killer):
                for number, letter in enumerate(WORDS, 1):
                    pipe.write(f"key {letter}\n".encode())
                    killer.await_deaths(number // KEYS_A_DEATH)
                said = guest.finish().values
    print(f"{killer.kills.total()} workers were killed")
    assert killer.kills.total() >= ENOUGH
    codes = INPUT_EVENT.iter_unpack(bytes.fromhex(said["all"]))
    lit = [(LED, 1, 1)]  # its readers hear of a light that it has set
    assert list(codes) == lit + [event for letter in WORDS for event in typed(KEYS[letter])]
    assert (said["found"], said["serial"]) == ("yes", "no. 17")
    assert tuple(int(part, 16) for part in said["ids"].split()) == IDS
    assert (said["keys"], said["lights"]) == (in_words(KEYS.values()), "7")
    for name, key in (("first", "a"), ("second", "b")):
        assert list(INPUT_EVENT.iter_unpack(bytes.fromhex(said[name]))) == typed(KEYS[key])
    assert not [line for line in served.lines if "ERROR" in line]
    shown(served.lines)
