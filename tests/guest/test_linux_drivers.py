"""The devices of test rigs with Linux's own drivers, in User-Mode Linux built from a newer source
(`deploy/uml.sh`); also while their workers are killed, again and again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.devices.nodes import ANSWER, Nodes
from tests.guest.deaths import BOUND_S, LOOK_S, Gate, WorkerKiller, meanwhile
from tests.guest.load import LONG
from tests.guest.programs import build
from vuproc.devices.rtc_course import S
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.spec.virtio import DeviceId
from vuproc.testing import Served, serve
from vuproc.testing.vms import LinuxGuest, boot_uml, clients

KILLS = 60 if LONG else 4
"""So many deaths in a load, at least."""
MASTERS = 10 if LONG else 1
"""So many masters of a supervised device die in a load."""
SOURCES = Path(__file__).with_name("drivers")
FRAME = 4
"""Bytes of a frame of sound."""
CAN_ERR_FLAG, CAN_ERR_BUSOFF = 0x2000_0000, 0x40
"""Of Linux's frames that are errors."""
RATE = 48000
RECORDED_S = 1200 if LONG else 60
PARAMETERS = ("virtio_snd.pcm_buffer_ms=1280", "virtio_snd.msg_timeout_ms=60000")
"""Of Linux's sound driver, for a crowded machine: a guest that does not look for as long as its
buffer lasts does not go on, and a command is given up after a second (docs/devices/sound.md).
"""
STARTED_S = 30
"""A device may take so long to start."""

pytestmark = pytest.mark.timeout(1200 if LONG else 150)

Run = Callable[[Served, str, str], LinuxGuest]
OverDeaths = Callable[[Served, str, str], dict[str, int]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The guest's, by their names."""
    folder = tmp_path_factory.mktemp("guest")
    return {path.stem: build(path, folder) for path in sorted(SOURCES.glob("*.c"))}


@pytest.fixture
def run(programs: dict[str, Path]) -> Run:
    """A guest that has one device and runs a script."""

    def guest(served: Served, kind: str, script: str) -> LinuxGuest:
        return boot_uml(
            {served.socket: DeviceId[kind.upper()]},
            script=script,
            modules=(),
            programs=[programs[kind]],
            kernel=clients.uml_with_drivers(),
            parameters=PARAMETERS,
        )

    return guest


@pytest.fixture
def over_deaths(run: Run, tmp_path: Path) -> OverDeaths:
    """What a script counts while the device's worker is killed. The script goes on until there is
    the file UNTIL, which comes once there were enough deaths.
    """

    def counted(served: Served, kind: str, script: str) -> dict[str, int]:
        gate = Gate(tmp_path)
        killer = WorkerKiller(served.socket)
        with meanwhile(killer):
            with run(served, kind, gate.script(script)) as guest:
                killer.await_deaths(KILLS)
                gate.open()
                said = guest.finish().values
        return {key: int(value) for key, value in said.items()}

    return counted


def quiet(served: Served) -> None:
    """Nothing is wrong that the log would have."""
    assert not [line for line in served.lines if "WARNING" in line or "ERROR" in line]


# i2c


CHIPS = [{"address": 0x50, "kind": "eeprom"}, {"address": 0x48, "kind": "lm75"}]
I2C_CHIPS = """
cd /sys/bus/i2c/devices/i2c-0
echo 24c02 0x50 >new_device
echo lm75 0x48 >new_device
say memory $(hexdump -v -n 4 -e '4/1 "%02x"' 0-0050/eeprom)
printf 'written' | dd of=0-0050/eeprom bs=1 seek=250 conv=notrunc 2>/dev/null || say full yes
printf 'written' | dd of=0-0050/eeprom bs=1 seek=100 conv=notrunc 2>/dev/null
say read $(dd if=0-0050/eeprom bs=1 skip=100 count=7 2>/dev/null)
say temperature $(cat 0-0048/hwmon/hwmon*/temp1_input)
say ready yes
until [ $(cat 0-0048/hwmon/hwmon*/temp1_input) = 85000 ]; do sleep 0.1; done
echo 24c02 0x51 >new_device
[ -e 0-0051/eeprom ] || say absent yes
"""


def test_linuxs_drivers_of_chips_on_the_bus(run: Run, tmp_path: Path) -> None:
    control = tmp_path / "control"
    with serve({"type": "i2c", "chips": CHIPS, "control": str(control)}) as served:
        with run(served, "i2c", I2C_CHIPS) as guest:
            guest.wait_for("ready")
            assert told(control, "set 0x48 temperature 85") == "ok"
            said = guest.finish().values
        quiet(served)
    assert said["memory"] == "ffffffff" and said["read"] == "written"
    assert said["temperature"] == "25000"
    assert said["absent"] == "yes"


def test_a_bus_and_its_chip_over_deaths(over_deaths: OverDeaths) -> None:
    with serve({"type": "i2c", "chips": CHIPS}) as served:
        counts = over_deaths(served, "i2c", "i2c UNTIL")
    assert counts["rounds"] > 2 * KILLS
    assert (counts["failed"], counts["wrong"]) == (0, 0)


# gpio


WIRED = [{"name": "OUT"}, {"name": "IN", "wired_to": "OUT"}, {"name": "BUTTON"}]


def test_lines_and_their_edges_over_deaths(over_deaths: OverDeaths) -> None:
    with serve({"type": "gpio", "lines": WIRED}) as served:
        counts = over_deaths(served, "gpio", "gpio UNTIL")
    assert counts["toggles"] > 2 * KILLS and counts["wrong"] == 0


def test_a_button_that_a_script_presses(run: Run, tmp_path: Path) -> None:
    control = tmp_path / "control"
    with serve({"type": "gpio", "lines": WIRED, "control": str(control)}) as served:
        with run(served, "gpio", "gpio watch 4") as guest:
            guest.wait_for("watching")
            for value, edge in ((1, "up"), (0, "down")) * 2:
                assert told(control, f"set BUTTON {value}") == "ok"
                guest.wait_for(f"edge {edge}")
            guest.finish()
        quiet(served)


# can


def test_frames_of_each_kind_come_back(run: Run) -> None:
    with serve({"type": "can"}) as served:
        with run(served, "can", "can kinds") as guest:
            said = guest.finish().values
        quiet(served)
    assert said["kind0"] == "16 123 8 classic"
    assert said["kind1"] == f"16 {0x81234567:x} 5 long"
    assert said["kind2"] == f"16 {0x40000321:x} 3 "
    assert said["kind3"] == "72 7ff 64 much"


def test_another_node_answers_and_the_controller_goes_bus_off(run: Run, tmp_path: Path) -> None:
    with serve(Nodes, seen=str(tmp_path / "seen")) as served:
        with run(served, "can", "can off") as guest:
            said = guest.finish().values
    assert said["before"] == said["after"] == f"{ANSWER:x} cba"
    assert said["off"] == f"{CAN_ERR_FLAG | CAN_ERR_BUSOFF:x}"


def test_a_bus_over_deaths(over_deaths: OverDeaths) -> None:
    with serve({"type": "can"}) as served:
        counts = over_deaths(served, "can", "can rounds UNTIL")
        deaths = served.status().queues[0].restarts
    assert counts["wrong"] == 0
    assert counts["back"] > 2 * KILLS
    # At most the one that was under way at a death.
    assert counts["refused"] + counts["lost"] <= deaths


# rtc


@pytest.mark.parametrize("clock", ["utc", "monotonic"])
def test_a_clock_over_deaths(over_deaths: OverDeaths, clock: str) -> None:
    epoch = 1_000_000_000
    with serve({"type": "rtc", "epoch": epoch, "clocks": [clock]}) as served:
        begun = time.monotonic()
        counts = over_deaths(served, "rtc", "rtc 0 UNTIL")
        lasted = time.monotonic() - begun
    assert counts["back"] == 0 and counts["count"] > 2 * KILLS
    least = epoch * S if clock == "utc" else 0
    assert least <= counts["first"] < counts["last"] < least + (lasted + STARTED_S) * S


def test_an_alarm_wakes_a_program_over_a_death(run: Run) -> None:
    script = "rtc alarm 2\nhwclock -u -r -f /dev/rtc0"
    with serve({"type": "rtc", "clocks": ["utc", "smeared"], "epoch": 1_000_000_000}) as served:
        with run(served, "rtc", script) as guest:
            guest.wait_for("set")
            served.wait_worker(other_than=served.kill_worker())
            guest.wait_for("Sun Sep  9 01:46:")
            said = guest.finish().values
    # An alarm, and one of them.
    assert said["events"] == "1a0"
    assert 0 <= int(said["late"]) < BOUND_S


# spi


def test_transfers_over_deaths(over_deaths: OverDeaths) -> None:
    script = "echo spidev 0 >/sys/class/spi_master/spi0/new_device\nspi wire UNTIL"
    with serve({"type": "spi", "chips": ["loopback"]}) as served:
        counts = over_deaths(served, "spi", script)
    assert counts["rounds"] > 2 * KILLS
    assert (counts["failed"], counts["wrong"]) == (0, 0)


def test_modes_of_transfers(run: Run) -> None:
    script = "echo spidev 0 >/sys/class/spi_master/spi0/new_device\nspi modes"
    with serve({"type": "spi", "chips": ["loopback"]}) as served:
        with run(served, "spi", script) as guest:
            said = guest.finish().values
        quiet(served)
    for mode in ("mode0", "mode1", "mode2", "mode3", "high", "loop"):
        assert said[mode] == "moon"
    # It is not offered; Linux 7.3 takes CPOL_1 for it, and hears of it by PARAM_ERR.
    assert said["last"] in ("refused", "Invalid argument")
    print(f"LSB first: {said['last']}")


def test_linuxs_driver_of_a_flash_over_deaths(over_deaths: OverDeaths, tmp_path: Path) -> None:
    content = tmp_path / "flash"
    content.write_bytes(b"\xff" * (1 << 20))
    script = "echo spi-nor 0 >/sys/class/spi_master/spi0/new_device\nspi flash UNTIL"
    with serve({"type": "spi", "chips": ["flash"], "flash_file": str(content)}) as served:
        counts = over_deaths(served, "spi", script)
    assert counts["wrong"] == 0 and counts["rounds"] > 0 and counts["size"] == 1 << 20
    written = counts["rounds"] * counts["erasesize"]
    assert content.read_bytes().count(0xFF, written) == max(0, (1 << 20) - written)


# sound


def frames(count: int) -> bytes:
    return b"".join(number.to_bytes(FRAME, "little") for number in range(count))


def test_what_is_played_is_in_the_file_over_deaths(over_deaths: OverDeaths, tmp_path: Path) -> None:
    path = tmp_path / "played.wav"
    with serve({"type": "sound", "playback": [{"backend": "wav", "path": str(path)}]}) as served:
        counts = over_deaths(served, "sound", "sound play UNTIL")
    assert counts["wrong"] == 0 and counts["frames"] > 0
    with wave.open(str(path), "rb") as file:
        assert file.readframes(counts["frames"] + 1) == frames(counts["frames"])


def test_what_is_recorded_is_that_of_the_file_over_deaths(
    over_deaths: OverDeaths, tmp_path: Path
) -> None:
    path = tmp_path / "said.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(frames(RECORDED_S * RATE))
    capture: dict[str, Any] = {"backend": "wav", "path": str(path)}
    with serve({"type": "sound", "capture": [capture]}) as served:
        counts = over_deaths(served, "sound", "sound record UNTIL")
    assert 0 < counts["frames"] < RECORDED_S * RATE
    assert counts["wrong"] == 0


# all of them


SPIDEV = "echo spidev 0 >/sys/class/spi_master/spi0/new_device\n"
LOADS: dict[str, tuple[dict[str, object], str]] = {
    "i2c": ({"chips": CHIPS}, "i2c UNTIL"),
    "gpio": ({"lines": WIRED}, "gpio UNTIL"),
    "can": ({}, "can rounds UNTIL"),
    "rtc": ({}, "rtc 1 UNTIL"),
    "spi": ({"chips": ["loopback"]}, SPIDEV + "spi wire UNTIL"),
    "sound": ({}, "sound play UNTIL"),
}


@pytest.mark.parametrize("kind", LOADS)
def test_the_guest_goes_on_over_the_death_of_a_supervised_master(
    run: Run, tmp_path: Path, kind: str
) -> None:
    described, script = LOADS[kind]
    if kind == "sound":
        path = tmp_path / "played.wav"
        described = {"playback": [{"backend": "wav", "path": str(path)}]}
    gate = Gate(tmp_path)
    with serve({"type": kind, **described}, arguments=["--supervised"]) as served:
        with run(served, kind, gate.script(script)) as guest:
            master = 0
            for _ in range(MASTERS):
                master = serving(served, master)
                os.kill(master, signal.SIGKILL)
            serving(served, master)
            gate.open()
            counts = {key: int(value) for key, value in guest.finish().values.items()}
    assert not any(counts.get(key, 0) for key in ("wrong", "back" if kind == "rtc" else "failed"))
    assert counts.get("refused", 0) + counts.get("lost", 0) <= MASTERS
    if kind == "sound":
        with wave.open(str(path), "rb") as file:
            assert file.readframes(counts["frames"] + 1) == frames(counts["frames"])


def serving(served: Served, other_than: int) -> int:
    """The process of a master other than that one, once the device completes requests under it."""
    deadline, pid, before, done = time.monotonic() + BOUND_S, 0, 0, 0
    while time.monotonic() < deadline:
        # There may be nobody to answer at the moment.
        with contextlib.suppress(AdminError):
            status = ask(served.socket, Request("status"), BOUND_S)
            done = sum(queue["requests"] for queue in status["queues"])
            if pid == status["pid"] != other_than and done > before:
                return pid
            pid, before = status["pid"], done
        time.sleep(LOOK_S)
    pytest.fail(f"no other master than {other_than} serves the guest: {done} requests")


def told(control: Path, line: str) -> str:
    """What a device's control socket answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(BOUND_S)
        client.connect(str(control))
        client.sendall(line.encode() + b"\n")
        with client.makefile() as answers:
            return answers.readline().strip()
