"""The I2C adapter with the built-in driver: simulated chips, groups, and a bus of the host."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.devices.wires import BROKEN, COUNTER, Counter, Hasty, Host, Rig
from vuproc.device_file.check import load
from vuproc.devices.control import MOST_CLIENTS, MOST_LINE
from vuproc.devices.i2c import I2c
from vuproc.devices.i2c_chips import Registers
from vuproc.devices.i2c_host import MOST_IN_GROUP
from vuproc.devices.i2c_options import ChipOptions, I2cOptions
from vuproc.devices.i2c_request import MOST_BYTES
from vuproc.devices.i2c_simulated import SimulatedBus, files_of
from vuproc.errors import ConfigErrors, FileRefused
from vuproc.spec.i2c import (
    OUT_HEADER,
    TEN_BIT_MAX,
    I2cFeature,
    I2cFlag,
    I2cStatus,
    address_of,
    in_request,
)
from vuproc.testing import Guest, serve
from vuproc.testing.errors import NoCompletion

pytestmark = pytest.mark.timeout(90)

OK, ERR = bytes([I2cStatus.OK]), bytes([I2cStatus.ERR])
EEPROM, SENSOR, MAP, NOBODY = 0x50, 0x48, 0x20, 0x33
CHIPS = [
    {"address": EEPROM, "kind": "eeprom", "size": "4KiB", "content": "00 11 22 33"},
    {"address": SENSOR, "kind": "lm75", "temperature": -10.5},
    {"address": MAP, "kind": "registers", "size": 16, "content": "aabb"},
]


def header(address: int, *, reads: bool = False, grouped: bool = False, **more: int) -> bytes:
    flags = I2cFlag.M_RD * reads | I2cFlag.FAIL_NEXT * grouped
    return OUT_HEADER.pack(**{"addr": in_request(address), "flags": flags, **more})


def write(address: int, data: bytes = b"", *, grouped: bool = False) -> tuple[Any, Any]:
    return [header(address, grouped=grouped), *([data] if data else [])], [1]


def read(address: int, count: int, *, grouped: bool = False) -> tuple[Any, Any]:
    sizes = [count, 1] if count else [1]
    return [header(address, reads=True, grouped=grouped)], sizes


def transact(guest: Guest, *segments: tuple[Any, Any]) -> list[tuple[bytes, bytes]]:
    """The status of each segment of a group, and what was read."""
    tokens = [guest.submit(0, out, in_) for out, in_ in segments]
    return [(data[-1], b"".join(data[:-1])) for data in (guest.wait(t).data for t in tokens)]


def get(guest: Guest, address: int, at: bytes, count: int) -> bytes:
    """As drivers read: where, and then what is there."""
    segments = (write(address, at, grouped=True), read(address, count))
    (first, _), (status, content) = transact(guest, *segments)
    assert (first, status) == (OK, OK)
    return content


def test_simulated_chips_answer_and_keep_what_they_have() -> None:
    device = {"type": "i2c", "chips": CHIPS}
    with serve(device, arguments=["--supervised"]) as served, served.guest(packed=True) as guest:
        assert get(guest, EEPROM, b"\0\1", 4) == bytes.fromhex("112233ff")
        assert transact(guest, write(EEPROM, b"\x0f\xfehello")) == [(OK, b"")]
        assert get(guest, EEPROM, b"\x0f\xfe", 3) == b"hel"
        served.wait_worker(other_than=served.kill_worker())
        # Reading goes on, over the end.
        assert transact(guest, read(EEPROM, 3)) == [(OK, b"lo3")]
        said = len(served.lines)
        os.kill(served.status().pid, signal.SIGKILL)
        served.wait_for_line("keeper: master", after=said)
        assert transact(guest, read(EEPROM, 1)) == [(OK, b"\xff")]
        assert get(guest, SENSOR, b"\0", 2) == bytes.fromhex("f580")
        assert get(guest, SENSOR, b"\3", 4) == bytes.fromhex("5000ffff")
        assert transact(guest, write(SENSOR, b"\2\x12\x34\x56"), write(SENSOR, b"\0\7\7")) == [
            (OK, b""),
            (OK, b""),
        ]
        assert get(guest, SENSOR, b"\2", 2) == b"\x12\x34"
        assert get(guest, SENSOR, b"\0", 2) == bytes.fromhex("f580")
        assert get(guest, MAP, b"\0", 17) == bytes.fromhex("aabb") + bytes(14) + b"\xaa"
        # Is somebody there?
        quick = [write(EEPROM), read(EEPROM, 0), write(NOBODY), read(NOBODY, 0)]
        assert [status for status, _ in transact(guest, *quick)] == [OK, OK, ERR, ERR]


def test_what_belongs_to_a_request_that_failed_fails_too_over_a_death() -> None:
    with serve(Rig) as served, served.guest() as guest:
        group = [write(NOBODY, b"x", grouped=True), read(COUNTER, 4, grouped=True)]
        assert [status for status, _ in transact(guest, *group)] == [ERR, ERR]
        served.wait_worker(other_than=served.kill_worker())
        assert transact(guest, read(COUNTER, 4), read(COUNTER, 4)) == [
            (ERR, bytes(4)),
            (OK, b"\0\0\0\1"),
        ]


class Dying:
    """What a bus needs of a request, whose worker dies at a verb of it."""

    head = 7
    marked = False
    at = ""

    def __init__(self, out: Any, in_: Any) -> None:
        self.readable_segments = tuple(out)
        self.readable_total = sum(map(len, out))
        self.writable_total = sum(in_)
        self.content = b""

    def write(self, data: bytes) -> None:
        self.content = data
        self._die("write")

    def put(self, offset: int, data: bytes) -> None:
        self._die("put")
        self.status = data

    @property
    def resubmit(self) -> str:
        return "fail" if self.marked else "run"

    @resubmit.setter
    def resubmit(self, value: str) -> None:
        self._die("mark")
        self.marked = value == "fail"

    def _die(self, where: str) -> None:
        if self.at == where:
            raise InterruptedError(where)


@pytest.mark.parametrize("where", ["mark", "write", "put", "end"])
def test_each_request_is_served_once_wherever_a_worker_dies(where: str) -> None:
    def bus() -> SimulatedBus:
        return SimulatedBus({MAP: Registers(8), COUNTER: Counter()}, files)

    files = files_of({MAP: Registers(8, b"01234567"), COUNTER: Counter()})
    answers = []
    for number, (out, in_) in enumerate([read(COUNTER, 4), read(MAP, 2), read(MAP, 2)] * 2):
        request: Any = Dying(out, in_)
        request.at = where if number in (1, 3) else ""
        try:
            bus().begin(request)
            if request.at:
                raise InterruptedError("before the driver has seen it")
        except InterruptedError:
            request.at = ""
            (bus().again if request.marked else bus().begin)(request)
        answers.append((request.content, request.status))
    count = [number.to_bytes(4, "big") for number in (1, 2)]
    wanted = [count[0], b"01", b"23", count[1], b"45", b"67"]
    assert answers == [(content, OK) for content in wanted]
    for file in files.values():
        file.close()


def test_a_mistake_of_a_chip_fails_its_request() -> None:
    with serve(Rig) as served, served.guest() as guest:
        assert transact(guest, read(BROKEN, 2), read(COUNTER, 4)) == [
            (ERR, bytes(2)),
            (OK, b"\0\0\0\1"),
        ]
        assert transact(guest, write(BROKEN, b"x", grouped=True), read(COUNTER, 4)) == [
            (ERR, b""),
            (ERR, bytes(4)),
        ]
        assert transact(guest, write(COUNTER, b"x")) == [(ERR, b"")]
        served.wait_for_line("broken chip")


def test_c43_requests_that_make_no_sense_fail() -> None:
    with serve({"type": "i2c", "chips": CHIPS}) as served, served.guest() as guest:
        bad = [
            ([header(MAP)[:7]], [1]),
            ([], [1]),
            ([header(MAP, addr=MAP << 1 | 1)], [1]),
            ([header(MAP, addr=MAP << 1 | 0x100)], [1]),
            ([header(MAP, flags=4)], [1]),
            ([header(MAP)], [1, 1]),
            ([header(MAP, reads=True), b"?"], [1, 1]),
            ([header(MAP), bytes(MOST_BYTES + 1)], [1]),
            ([header(MAP, reads=True)], [MOST_BYTES + 1, 1]),
            ([header(0, addr=in_request(MAP, ten_bit=True))], [1]),
            write(EEPROM, b"\0"),
        ]
        for out, in_ in bad:
            assert guest.do(0, out, in_).data[-1] == ERR, (out, in_)
        # No room for the status.
        assert guest.do(0, [header(MAP)], []).written == 0
        assert get(guest, MAP, b"\1", 1) == b"\xbb"
        assert not [line for line in served.lines if "ERROR" in line]
        # A driver with another idea of what a request is.
        guest.close()
        with served.guest(without=I2cFeature.ZERO_LENGTH_REQUEST) as other:
            assert transact(other, write(MAP)) == [(ERR, b"")]
            served.wait_for_line("does not take ZERO_LENGTH_REQUEST")


def test_an_address_is_found_in_its_request() -> None:
    assert [address_of(in_request(at)) for at in (0x08, 0x77)] == [(0x08, False), (0x77, False)]
    for at in range(TEN_BIT_MAX + 1):
        assert address_of(in_request(at, ten_bit=True)) == (at, True)


class Script:
    """Somebody who talks to a device."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")

    def say(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        return self.lines.readline().rstrip("\n")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def test_scripts_set_and_read_what_chips_have(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with serve({"type": "i2c", "chips": CHIPS, "control": str(path)}) as served:
        with served.guest() as guest, closing(Script(path)) as script:
            assert script.say("set 0x48 temperature 21.5") == "ok"
            assert get(guest, SENSOR, b"\0", 2) == bytes.fromhex("1580")
            assert script.say("write 0x20 14 0102") == "ok"
            assert get(guest, MAP, b"\x0e", 2) == b"\1\2"
            assert script.say("read 0x50 0 4") == "00112233"
            for line, said in {
                "set 0x48 temperature 300": "300 is not from -55 to 125",
                "set 0x48 temperature nan": "nan is not",
                "set 0x48 colour 3": "lm75 has no colour",
                "set 0x33 temperature 3": "there is no chip 0x33",
                "write 0x20 15 0102": "the chip has 16 bytes",
                "read 0x20 -1 1": "the chip has 16 bytes",
                "write 0x20 0 xx": "hex",
                "dance": "none of set, read, write",
                "write 0x20 0 " + "00" * MOST_LINE: "at most 1024 bytes",
                "": "",
            }.items():
                assert said in script.say(line)
            others = [Script(path) for _ in range(MOST_CLIENTS - 1)]
            with closing(Script(path)) as one_more:
                assert one_more.lines.readline() == ""
            others[0].socket.sendall(b"x" * (MOST_LINE + 2))
            assert others[0].lines.readline() == ""
            for other in others:
                other.close()
            served.wait_worker(other_than=served.kill_worker())
            assert script.lines.readline() == ""
            with closing(Script(path)) as again:
                assert again.say("read 0x48 0 2") == "1580"


def test_an_eeprom_is_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "eeprom.bin"
    chip = {"address": EEPROM, "kind": "eeprom", "size": 8, "file": str(file)}
    for turn in (b"a", b"b"):
        with serve({"type": "i2c", "chips": [chip]}) as served, served.guest() as guest:
            expected = b"\xff" if turn == b"a" else b"a"
            assert get(guest, EEPROM, b"\2", 1) == expected
            assert transact(guest, write(EEPROM, b"\2" + turn)) == [(OK, b"")]
    assert file.read_bytes() == b"\xff\xffb" + b"\xff" * 5
    longer = ChipOptions(address=EEPROM, kind="eeprom", size=9, file=str(file))
    with pytest.raises(FileRefused, match="8 bytes, and the chip has 9"):
        I2c(I2cOptions(chips=(longer,))).shared_files()


# A bus of the host, whose library is made up.


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was on it, a line for each transaction."""
    path = tmp_path / "bus"
    monkeypatch.setenv("VUPROC_TEST_BUS", str(path))
    return path


def test_a_group_is_one_transaction_on_the_hosts_bus(bus: Path) -> None:
    with serve(Host) as served, served.guest(queue_size=256) as guest:
        assert transact(guest, write(0x50, b"\1", grouped=True), read(0x50, 2)) == [
            (OK, b""),
            (OK, b"\2\2"),
        ]
        assert transact(guest, write(0x50)) == [(OK, b"")]
        ten = [header(0, addr=in_request(0x2A5, ten_bit=True)), b"x"]
        assert guest.do(0, ten, [1]).data == (OK,)
        lines = ["0:50:01 1:50:0000", "0:50:", "10:2a5:78"]
        assert bus.read_text().splitlines() == lines
        # Nobody is there, or a part of it makes no sense: then all of it has failed.
        group = (read(0x13, 1, grouped=True), read(0x50, 1))
        assert transact(guest, *group) == [(ERR, b"\0"), (ERR, b"\0")]
        group = (write(0x50, b"x", grouped=True), ([header(0x50, flags=8)], [1]))
        assert [status for status, _ in transact(guest, *group)] == [ERR, ERR]
        long = [write(0x50, b"x", grouped=True)] * (MOST_IN_GROUP + 2) + [write(0x50, b"x")]
        assert {status for status, _ in transact(guest, *long)} == {ERR}
        assert transact(guest, read(0x15, 1), write(0x50, b"y")) == [(ERR, b"\0"), (OK, b"")]
        lines += ["1:13:00 1:50:00", "1:15:00", "0:50:79"]
        assert bus.read_text().splitlines() == lines
        served.wait_for_line("a mistake")


def test_what_was_perhaps_on_the_hosts_bus_is_not_there_twice(bus: Path) -> None:
    with serve(Host) as served, served.guest() as guest:
        group = (write(0x14, b"x", grouped=True), read(0x14, 1))
        assert [status for status, _ in transact(guest, *group)] == [ERR, ERR]
        assert bus.read_text() == "0:14:78 1:14:00\n"
        # Half of a group waits for the rest of it, wherever its worker is.
        said = len(served.lines)
        token = guest.submit(0, *write(0x50, b"a", grouped=True))
        served.wait_for_line("kept for", after=said)
        served.wait_worker(other_than=served.kill_worker())
        assert transact(guest, read(0x50, 1)) == [(OK, b"\2")]
        assert guest.wait(token).data == (OK,)


def test_a_group_whose_rest_does_not_come_is_served_as_it_is(bus: Path) -> None:
    """Linux waits for what had room in the queue before it sends the rest."""
    with serve(Hasty) as served, served.guest() as guest:
        part = (write(0x50, b"a", grouped=True), read(0x50, 1, grouped=True))
        assert transact(guest, *part) == [(OK, b""), (OK, b"\2")]
        assert transact(guest, read(0x50, 1)) == [(OK, b"\1")]
    assert bus.read_text().splitlines() == ["0:50:61 1:50:00", "1:50:00"]


def test_half_of_a_group_does_not_hinder_a_stop(bus: Path) -> None:
    with serve(Host) as served, served.guest() as guest:
        token = guest.submit(0, *write(0x50, b"a", grouped=True))
        served.wait_for_line("kept for")
        pid = served.status().queues[0].pid
        guest.stop_queue(0)
        assert served.status().queues[0].pid == pid
        with pytest.raises(NoCompletion):
            guest.wait(token, 0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bus": "/dev/null"}, "needs the Python package smbus2"),
        ({"bus": "/dev/null", "chips": CHIPS}, "leave out chips and control"),
        ({"chips": [*CHIPS, CHIPS[0]]}, r"chips\[3\]: 0x50 is taken already"),
        ({"chips": [{"address": 3, "kind": "lm75"}]}, ">= 8, got 3"),
        ({"chips": [{"address": 9, "kind": "lm76"}]}, "expected eeprom, lm75 or registers"),
        ({"chips": [{"address": 9, "kind": "registers", "content": "zz"}]}, "not in hexadecimal"),
        ({"chips": [{**CHIPS[2], "size": 1}]}, "content has 2 bytes, and the chip 1"),
        ({"chips": [{**CHIPS[1], "temperature": 200}]}, "200 is not from -55"),
        ({"control": "/nowhere/socket"}, "control"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    file = tmp_path / "i2c.yaml"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "i2c", **options}}))
    with pytest.raises((ConfigErrors, FileRefused), match=reason):
        load(file).make_device().shared_files()


def test_what_is_no_bus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="/dev/null: not an I2C bus"):
        I2c(I2cOptions(bus="/dev/null")).shared_files()
    with pytest.raises(Exception, match="/nowhere: No such file"):
        I2c(I2cOptions(bus="/nowhere")).shared_files()


def test_nobody_goes_on_with_other_chips() -> None:
    def one(**chip: Any) -> I2c:
        return I2c(I2cOptions(chips=(ChipOptions(address=EEPROM, **chip),)))

    left = one(kind="eeprom").shared_files()
    assert one(kind="eeprom", content="00").goes_on_with(left)
    assert not one(kind="registers").goes_on_with(left)
    assert not one(kind="eeprom", size=8).goes_on_with(left)
    assert not I2c(I2cOptions()).goes_on_with(left)
    for file in left.values():
        file.close()
