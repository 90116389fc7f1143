"""The SCSI host with the built-in driver."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from tests.devices.scsi_driver import Driver, lun
from vuproc.device_file.check import load
from vuproc.devices.blk_storage import Storage, new_memory
from vuproc.devices.scsi import Scsi
from vuproc.devices.scsi_commands import serve as serve_command
from vuproc.devices.scsi_options import ScsiOptions, UnitOptions
from vuproc.devices.scsi_state import Left, UnitLeft
from vuproc.devices.scsi_task import CheckCondition, Task
from vuproc.devices.scsi_unit import Unit, UnitState
from vuproc.errors import ConfigErrors
from vuproc.spec.scsi import (
    CDB_SIZE,
    CONFIG,
    CONTROL,
    EVENT,
    EVENTS_MISSED,
    RESPONSE,
    SENSE_SIZE,
    TMF_REQUEST,
    ControlType,
    ResetReason,
    ScsiEvent,
    ScsiFeature,
    ScsiResponse,
    Tmf,
)
from vuproc.spec.scsi_commands import Key, Op, Sense, Vpd
from vuproc.testing import Guest, Served, serve
from vuproc.testing.errors import NoCompletion, Refused
from vuproc.workers import state_bytes

pytestmark = pytest.mark.timeout(90)

SIZE = 4 << 20
BLOCKS = SIZE // 512
CD_BLOCKS = 100
ILLEGAL = int(Key.ILLEGAL_REQUEST)
DISK, FIXED, CD, LARGE = 0, 1, 2, 3
"""Targets of the host that most tests have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scsi")
    (made / "disk").write_bytes(bytes(SIZE))
    (made / "fixed").write_bytes(b"fixed".ljust(SIZE, b"."))
    (made / "cd").write_bytes(b"".join(bytes([n]) * 2048 for n in range(CD_BLOCKS)))
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    luns = [
        {"image": str(folder / "disk"), "serial": "S-1", "product": "A DISK"},
        {"image": str(folder / "fixed"), "readonly": True},
        {"image": str(folder / "cd"), "kind": "cdrom"},
        {"ram": "8MiB", "block_size": 4096, "lun": 300},
    ]
    with serve({"type": "scsi", "luns": luns, "request_queues": 2}) as made:
        yield made
    assert not [line for line in made.lines if "ERROR" in line]


@pytest.fixture
def driver(served: Served) -> Iterator[Driver]:
    with served.guest(queues=4) as guest:
        yield Driver(guest)


def sixteen(op: int, lba: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", op, flags, lba, count, 0, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_written_is_read_and_in_the_image(
    served: Served, folder: Path, packed: bool
) -> None:
    data = random.Random(packed).randbytes(64 << 10)
    with served.guest(queues=4, packed=packed) as guest:
        driver, other = Driver(guest), Driver(guest, 3)
        wrote = driver.write(8, data, 128)
        assert wrote.good and wrote.residual == 0 and wrote.used == RESPONSE.size + SENSE_SIZE
        for each in (driver, other):
            read = each.read(8, 128, len(data))
            assert read.good and read.data == data and read.residual == 0
        assert (folder / "disk").read_bytes()[4096:][: len(data)] == data


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (bytes((Op.WRITE_6, 0, 0, 16, 2, 0)), bytes((Op.READ_6, 0, 0, 16, 2, 0))),
        (
            struct.pack(">BBIIBB", Op.WRITE_12, 8, 16, 2, 0, 0),
            struct.pack(">BBIIBB", Op.READ_12, 8, 16, 2, 0, 0),
        ),
        (sixteen(Op.WRITE_16, 16, 2, 0x18), sixteen(Op.READ_16, 16, 2, 0x18)),
    ],
    ids=["6", "12", "16"],
)
def test_commands_of_all_lengths_move_the_same(driver: Driver, write: bytes, read: bytes) -> None:
    data = os.urandom(1024)
    assert driver.do(write, [data[:100], data[100:]]).good
    assert driver.do(read, (), 1024).data == data == driver.read(16, 2, 1024).data


def test_nothing_moves_for_no_blocks_and_residuals_say_what_was_left(driver: Driver) -> None:
    read = driver.read(0, 0, 512)
    assert read.good and read.residual == 512 and read.used == RESPONSE.size + SENSE_SIZE
    assert driver.write(0, bytes(512), 0).residual == 512
    assert driver.read(0, 1, 2048).residual == 1536
    # READ(6) of none is one of 256.
    assert len(driver.do(bytes((Op.READ_6, 0, 0, 0, 0, 0)), (), 256 * 512).data) == 256 * 512
    assert driver.read(0, 2, 1023).response == ScsiResponse.OVERRUN
    assert driver.write(0, bytes(1023), 2).response == ScsiResponse.OVERRUN


def test_a_unit_says_what_it_is(driver: Driver) -> None:
    said = driver.inquiry().data
    assert said[0] == 0 and said[8:32] == b"VUPROC  A DISK          "
    assert driver.inquiry(room=5).data == said[:5]
    assert list(driver.inquiry(Vpd.SUPPORTED).data[4:]) == [0, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    assert driver.inquiry(Vpd.SERIAL).data[4:] == b"S-1"
    assert b"A DISK" in driver.inquiry(Vpd.IDENTIFICATION).data
    limits = driver.inquiry(Vpd.BLOCK_LIMITS).data
    assert len(limits) == 64 and limits[4] == 1
    assert struct.unpack_from(">IIII", limits, 20) == (4 << 20, 64, 8, 0)
    assert struct.unpack_from(">Q", limits, 36) == (65536,)
    assert driver.inquiry(Vpd.BLOCK_CHARACTERISTICS).data[4:6] == b"\0\1"
    assert driver.inquiry(Vpd.PROVISIONING).data[4:7] == b"\0\xe0\2"
    assert driver.inquiry(Vpd.SERIAL, to=lun(FIXED)).why[0] == ILLEGAL
    assert driver.inquiry(0x55).why == (ILLEGAL, Sense.INVALID_FIELD_IN_CDB)
    assert driver.inquiry(to=lun(CD)).data[:2] == b"\5\x80"
    assert driver.blocks() == (BLOCKS, 512)
    assert driver.blocks(to=lun(LARGE, 300)) == (2048, 4096)
    ten = driver.do(bytes((Op.READ_CAPACITY_10, *bytes(9))), (), 8)
    assert struct.unpack(">II", ten.data) == (BLOCKS - 1, 512)


def test_units_are_found_by_their_addresses(driver: Driver) -> None:
    report = struct.pack(">B5xIBB", Op.REPORT_LUNS, 256, 0, 0)
    for to in (lun(LARGE), bytes((1, LARGE, 0xC1, 1, 0, 0, 0, 0)), lun(LARGE, 300)):
        said = driver.do(report, (), 256, to=to)
        assert said.data == struct.pack(">II", 8, 0) + b"\x41\x2c" + bytes(6)
    assert driver.inquiry(to=lun(LARGE)).data[0] == 0x7F
    assert driver.ready(to=lun(LARGE)).why == (ILLEGAL, Sense.UNIT_NOT_SUPPORTED)
    assert driver.ready(to=bytes((1, DISK, 0, 0, 0, 0, 0, 0))).good
    for to in (lun(4), lun(255), bytes(8), b"\2" + bytes(7), lun(DISK)[:4] + b"\1" * 4):
        assert driver.ready(to=to).response == ScsiResponse.BAD_TARGET


@pytest.mark.parametrize(
    ("cdb", "why"),
    [
        (b"\xff", Sense.INVALID_OPERATION_CODE),
        (bytes((0x5E,)), Sense.INVALID_OPERATION_CODE),
        (bytes((0x5F,)), Sense.INVALID_OPERATION_CODE),
        (bytes((0x16,)), Sense.INVALID_OPERATION_CODE),
        (sixteen(Op.READ_16, BLOCKS, 1), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.READ_16, BLOCKS - 1, 2), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.READ_16, (1 << 64) - 1, (1 << 32) - 1), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.WRITE_16, (1 << 64) - 1, 1), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.READ_16, 0, 1, 0x20), Sense.INVALID_FIELD_IN_CDB),
        (sixteen(Op.WRITE_SAME_16, 0, 0, 1), Sense.INVALID_FIELD_IN_CDB),
        (sixteen(Op.WRITE_SAME_16, 0, 65537, 1), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.VERIFY_16, 0, 1, 2), Sense.INVALID_FIELD_IN_CDB),
        (sixteen(Op.SYNCHRONIZE_CACHE_16, BLOCKS + 1, 0), Sense.LBA_OUT_OF_RANGE),
        (sixteen(Op.SERVICE_ACTION_IN_16, 0, 1, 0x1F), Sense.INVALID_FIELD_IN_CDB),
        (bytes((Op.MODE_SENSE_6, 0, 0x3E, 0, 255, 0)), Sense.INVALID_FIELD_IN_CDB),
        (bytes((Op.MODE_SENSE_6, 0, 0xC8, 0, 255, 0)), Sense.SAVING_NOT_SUPPORTED),
        (bytes((Op.START_STOP_UNIT, 0, 0, 0, 2, 0)), Sense.INVALID_FIELD_IN_CDB),
        (struct.pack(">BB5xHB", Op.UNMAP, 0, 65535, 0), Sense.INVALID_FIELD_IN_CDB),
        (bytes((Op.READ_TOC,)), Sense.INVALID_OPERATION_CODE),
    ],
)
def test_what_cannot_be_done_is_said_by_sense_data(driver: Driver, cdb: bytes, why: int) -> None:
    said = driver.do(cdb, [bytes(512)], 512)
    assert said.why == (ILLEGAL, why)
    assert said.residual == 512 and said.used == RESPONSE.size + SENSE_SIZE
    assert driver.ready().good


def test_nothing_of_what_is_read_only_changes(driver: Driver, folder: Path) -> None:
    before = (folder / "fixed").read_bytes()
    refused = (int(Key.DATA_PROTECT), int(Sense.WRITE_PROTECTED))
    assert driver.write(0, bytes(512), 1, to=lun(FIXED)).why == refused
    for op in (Op.WRITE_SAME_16, Op.UNMAP, Op.WRITE_16):
        assert driver.do(sixteen(op, 0, 1, 1), [bytes(512)], to=lun(FIXED)).why == refused
    assert driver.do(sixteen(Op.SYNCHRONIZE_CACHE_16, 0, 0), to=lun(FIXED)).good
    mode = driver.do(bytes((Op.MODE_SENSE_6, 0, 0x3F, 0, 255, 0)), (), 255, to=lun(FIXED))
    assert mode.data[2] & 0x80
    assert (folder / "fixed").read_bytes() == before


def test_blocks_are_unmapped_and_written_alike(driver: Driver, folder: Path) -> None:
    assert driver.write(0, b"x" * 65536, 128).good
    ranges = struct.pack(">HHIQI4xQI4x", 38, 32, 0, 0, 8, 16, 8)
    assert driver.do(struct.pack(">BB5xHB", Op.UNMAP, 0, len(ranges), 0), [ranges]).good
    content = (folder / "disk").read_bytes()[:65536]
    assert content[:12288] == bytes(4096) + b"x" * 4096 + bytes(4096)
    beyond = struct.pack(">HHIQI4xQI4x", 38, 32, 0, 24, 8, BLOCKS, 1)
    said = driver.do(struct.pack(">BB5xHB", Op.UNMAP, 0, len(beyond), 0), [beyond])
    assert said.why == (ILLEGAL, Sense.LBA_OUT_OF_RANGE)
    # Nothing of it has gone.
    assert driver.read(24, 8, 4096).data == b"x" * 4096
    assert driver.do(struct.pack(">BB5xHB", Op.UNMAP, 0, 0, 0)).good
    assert driver.do(struct.pack(">BB5xHB", Op.UNMAP, 0, 7, 0), [bytes(7)]).why[0] == ILLEGAL

    pattern = os.urandom(512)
    assert driver.do(sixteen(Op.WRITE_SAME_16, 3, 5), [pattern]).good
    assert driver.read(3, 5, 2560).data == pattern * 5
    assert driver.do(sixteen(Op.WRITE_SAME_16, 4, 1, 8), [bytes(512)]).good
    assert driver.do(sixteen(Op.WRITE_SAME_16, 6, 1, 1)).good
    zero = bytes(512)
    assert driver.read(3, 5, 2560).data == pattern + zero + pattern + zero + pattern
    ten = struct.pack(">BBIBHB", Op.WRITE_SAME_10, 0, 4, 0, 1, 0)
    assert driver.do(ten, [pattern]).good and driver.read(3, 2, 1024).data == pattern * 2
    assert driver.do(ten, [pattern[:511]]).response == ScsiResponse.OVERRUN


def caching(driver: Driver, control: int = 0) -> bytes:
    cdb = bytes((Op.MODE_SENSE_6, 8, control << 6 | 8, 0, 255, 0))
    return driver.do(cdb, (), 255).data[4:]


def test_the_cache_is_switched_by_the_driver(driver: Driver) -> None:
    assert caching(driver)[2] == 4 and caching(driver, 1)[2] == 4
    for page in (bytes((8, 18, 0)) + bytes(17), bytes((8, 18, 4)) + bytes(17)):
        data = bytes(4) + page
        select = bytes((Op.MODE_SELECT_6, 0x10, 0, 0, len(data), 0))
        assert driver.do(select, [data]).good
        assert caching(driver) == page
        assert driver.write(0, bytes(512), 1).good
    data = bytes(8) + bytes((8, 18, 5)) + bytes(17)
    select = struct.pack(">BB5xHB", Op.MODE_SELECT_10, 0x10, len(data), 0)
    assert driver.do(select, [data]).why == (ILLEGAL, Sense.INVALID_FIELD_IN_PARAMETERS)
    for short in (bytes(3), bytes(4) + b"\x08", bytes(4) + b"\x08\x12\0", b"\0\0\0\x08"):
        select = bytes((Op.MODE_SELECT_6, 0x10, 0, 0, len(short), 0))
        assert driver.do(select, [short]).why == (ILLEGAL, Sense.PARAMETER_LIST_LENGTH)
    saved = bytes((Op.MODE_SELECT_6, 0x11, 0, 0, 0, 0))
    assert driver.do(saved).why == (ILLEGAL, Sense.INVALID_FIELD_IN_CDB)


def test_a_cd_is_read_ejected_and_locked(driver: Driver) -> None:
    cd = lun(CD)
    assert driver.read(7, 1, 2048, to=cd).data == b"\7" * 2048
    assert driver.do(bytes((Op.WRITE_10, *bytes(9))), to=cd).why[1] == Sense.INVALID_OPERATION_CODE
    toc = bytes((Op.READ_TOC, 0, 0, 0, 0, 0, 0, 0, 100, 0))
    assert driver.do(toc, (), 100, to=cd).data == bytes.fromhex(
        "0012 0101 0014010000000000 0014aa0000000064"
    )
    configuration = driver.do(bytes((Op.GET_CONFIGURATION, *bytes(6), 0, 100, 0)), (), 100, to=cd)
    assert struct.unpack_from(">I2xH", configuration.data) == (len(configuration.data) - 4, 8)
    status = bytes((Op.GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8, 0))
    assert driver.do(status, (), 8, to=cd).data[5] == 2
    assert driver.do(bytes((Op.MODE_SENSE_10, 0, 0x2A, *bytes(5), 64, 0)), (), 64, to=cd).good

    def do(op: int, value: int) -> Any:
        return driver.do(bytes((op, 0, 0, 0, value, 0)), to=cd)

    assert do(Op.PREVENT_ALLOW_MEDIUM_REMOVAL, 1).good
    assert do(Op.START_STOP_UNIT, 2).why == (ILLEGAL, Sense.REMOVAL_PREVENTED)
    assert do(Op.PREVENT_ALLOW_MEDIUM_REMOVAL, 0).good and do(Op.START_STOP_UNIT, 2).good
    assert driver.ready(to=cd).why == (Key.NOT_READY, Sense.NO_MEDIUM)
    assert driver.read(0, 1, 2048, to=cd).why == (Key.NOT_READY, Sense.NO_MEDIUM)
    assert do(Op.START_STOP_UNIT, 3).good and driver.ready(to=cd).good


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies"])
@pytest.mark.parametrize("stopped", [2, 3], ids=["its own worker", "another"])
def test_a_function_is_answered_when_nothing_posted_before_is_left(
    served: Served, driver: Driver, stopped: int, dies: bool
) -> None:
    guest = driver.guest
    pid = served.status().queues[stopped].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        tokens = [
            Driver(guest, queue).submit(
                struct.pack(">BBIBHB", Op.READ_10, 0, 0, 0, 64, 0), (), 32768
            )
            for queue in (2, 3)
            for _ in range(20)
        ]
        function = TMF_REQUEST.pack(subtype=Tmf.ABORT_TASK_SET, lun=lun(0))
        # More than may wait in the device.
        asked = [guest.submit(CONTROL, [function], [1], indirect=True) for _ in range(70)]
        with pytest.raises(NoCompletion):
            guest.wait(asked[0], 0.2)
    finally:
        os.kill(pid, signal.SIGKILL if dies else signal.SIGCONT)
    for token in asked:
        assert guest.wait(token).content == bytes((ScsiResponse.OK,))
    # All of them are finished by now: nothing is waited for.
    for token in tokens:
        assert guest.wait(token, 0.0).written


def test_a_worker_goes_on_until_nothing_is_left(served: Served, driver: Driver) -> None:
    """However little it was called for."""
    pid = served.status().queues[3].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        other = Driver(driver.guest, 3)
        tokens = [other.submit(bytes(6)) for _ in range(60)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert all(other.wait(token).good for token in tokens)


def test_functions_are_answered_as_the_specification_has_it(driver: Driver) -> None:
    other = Driver(driver.guest, 3)
    assert driver.manage(Tmf.LOGICAL_UNIT_RESET) == ScsiResponse.OK
    assert driver.inquiry().good
    assert driver.ready().why == (Key.UNIT_ATTENTION, Sense.RESET_OCCURRED)
    assert driver.ready().good and other.ready().good
    assert driver.manage(Tmf.QUERY_TASK) == ScsiResponse.OK
    assert driver.manage(Tmf.CLEAR_ACA) == ScsiResponse.FUNCTION_REJECTED
    assert driver.manage(99) == ScsiResponse.FUNCTION_REJECTED
    assert driver.manage(Tmf.ABORT_TASK, lun(9)) == ScsiResponse.BAD_TARGET
    assert driver.manage(Tmf.ABORT_TASK, lun(DISK, 1)) == ScsiResponse.INCORRECT_LUN
    assert driver.manage(Tmf.I_T_NEXUS_RESET, lun(LARGE)) == ScsiResponse.OK
    sense = driver.do(bytes((Op.REQUEST_SENSE, 0, 0, 0, 18, 0)), (), 18, to=lun(LARGE, 300))
    assert (sense.data[2], sense.data[12]) == (Key.UNIT_ATTENTION, 0x29)
    assert driver.ready(to=lun(LARGE, 300)).good
    assert driver.notification(ControlType.AN_QUERY) == (0, ScsiResponse.OK)
    assert driver.notification(ControlType.AN_SUBSCRIBE) == (0, ScsiResponse.OK)


def test_c51_hostile_requests_cost_nobody_but_themselves(served: Served, driver: Driver) -> None:
    guest, answer = driver.guest, RESPONSE.size + SENSE_SIZE
    before = [queue.restarts for queue in served.status().queues]
    whole = driver.header(bytes(6), lun(0))
    assert guest.do(2, [whole]).written == 0
    assert guest.do(2, [whole], [answer - 1]).written == 0
    for short in (b"", whole[:1], whole[:19], whole[:-1]):
        done = guest.do(2, [short] if short else (), [answer, 512])
        assert RESPONSE.unpack(done.content)["response"] == ScsiResponse.FAILURE
    for short in (b"", b"\0", bytes(4), TMF_REQUEST.pack()[:-1]):
        guest.do(CONTROL, [short] if short else (), [16])
    guest.do(CONTROL, [TMF_REQUEST.pack(lun=lun(0))])
    assert guest.do(CONTROL, [b"\xff" * 24], [16]).written == 0
    assert guest.do(CONTROL, [b"\1\0\0\0"], [5]).content[4] == ScsiResponse.FAILURE
    shuffled = random.Random(3)
    for _ in range(200):
        cdb = bytes((shuffled.choice([*Op, shuffled.randrange(256)]),)) + shuffled.randbytes(15)
        out = [shuffled.randbytes(shuffled.choice((0, 1, 8, 512, 4096)))]
        to = lun(shuffled.choice((LARGE, FIXED, CD)), shuffled.choice((0, 300)))
        said = driver.do(cdb, [each for each in out if each], shuffled.choice((0, 1, 4096)), to=to)
        assert said.response in (0, ScsiResponse.OVERRUN) and said.status in (0, 2)
    assert driver.ready().good
    assert [queue.restarts for queue in served.status().queues] == before


def test_the_configuration_space_says_the_sizes_and_takes_others(served: Served) -> None:
    with served.guest(queues=4) as guest:
        said = CONFIG.unpack(guest.config(CONFIG.size))
        assert (said["num_queues"], said["seg_max"], said["max_target"]) == (2, 254, 3)
        assert (said["sense_size"], said["cdb_size"], said["max_lun"]) == (96, 32, 300)
        own = guest.front_end.features & ((1 << 24) - 1)
        assert own == ScsiFeature.HOTPLUG | ScsiFeature.CHANGE
        at = CONFIG.offsets
        for size, cdb in ((SENSE_SIZE, CDB_SIZE), (18, 16), (252, 260), (4, 6)):
            guest.front_end.set_config(at["sense_size"], struct.pack("<I", size))
            guest.front_end.set_config(at["cdb_size"], struct.pack("<I", cdb))
            said = CONFIG.unpack(guest.config(CONFIG.size))
            assert (said["sense_size"], said["cdb_size"]) == (size, cdb)
            for queue in (2, 3):
                driver = Driver(guest, queue, sense_size=size, cdb_size=cdb)
                assert len(driver.inquiry().data) == 36
                assert len(driver.do(b"\xff").sense) == min(18, size)


@pytest.mark.parametrize(
    ("field", "value"), [("sense_size", 253), ("cdb_size", 5), ("cdb_size", 261), ("max_lun", 1)]
)
def test_what_the_driver_may_not_write_is_refused(served: Served, field: str, value: int) -> None:
    with served.guest(queues=4) as guest:
        before = guest.config(CONFIG.size)
        with pytest.raises(Exception, match="SET_CONFIG"):
            guest.front_end.set_config(CONFIG.offsets[field], struct.pack("<I", value))
        assert Driver(guest).ready().good
        assert guest.config(CONFIG.size) == before


@pytest.mark.parametrize("packed", [False, True])
def test_commands_go_on_whoever_dies(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    description = {"type": "scsi", "luns": [{"image": str(tmp_path / "disk")}]}
    data = random.Random(5).randbytes(SIZE)
    with (
        serve(description, arguments=["--supervised"]) as made,
        made.guest(queues=3, packed=packed) as guest,
    ):
        driver = Driver(guest)
        master = made.status().pid
        for turn in range(4):
            tokens = []
            for number in range(32):
                lba = (turn * 32 + number) * 64
                cdb = struct.pack(">BBIBHB", Op.WRITE_10, 0, lba, 0, 64, 0)
                tokens.append(driver.submit(cdb, [data[lba * 512 :][:32768]]))
            if turn == 2:
                os.kill(master, signal.SIGKILL)
            else:
                made.kill_worker(2)
            assert all(driver.wait(token).good for token in tokens)
            assert driver.manage(Tmf.ABORT_TASK_SET) == ScsiResponse.OK
        assert driver.read(0, BLOCKS // 2, SIZE // 2).data == data[: SIZE // 2]
        assert made.status().pid != master
    assert (tmp_path / "disk").read_bytes() == data


class Disk:
    """As much of a request and of a full disk as a write needs."""

    writable_total, readable = RESPONSE.size + SENSE_SIZE, 512

    def __init__(self, room: int) -> None:
        self.room = room
        self.steps: list[str] = []
        self.answer = b""

    def read(self, count: int) -> bytes:
        return bytes(count)

    def pwritev(self, file: int, offset: int, count: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        done = min(count, self.room)
        self.room -= done
        self.steps.append(f"write {done} at {offset}")
        return done

    def write(self, data: bytes) -> None:
        self.answer = data

    def finish(self) -> None:
        self.steps.append("finish")


def test_what_is_to_be_durable_is_so_before_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    for durable in (True, False):
        disk = Disk(room=512)
        monkeypatch.setattr(os, "fdatasync", lambda file, disk=disk: disk.steps.append("sync"))
        Task(cast("Any", disk), SENSE_SIZE, CDB_SIZE).write(3, 0, 512, 512, durable=durable)
        assert disk.steps == ["write 512 at 0", *["sync"] * durable, "finish"]


def test_a_full_disk_says_which_block_had_no_place() -> None:
    task = Task(cast("Any", Disk(room=1100)), SENSE_SIZE, CDB_SIZE)
    task.out = 2048
    with pytest.raises(CheckCondition) as refused:
        task.write(3, 512, 2048, 512, durable=False)
    found = refused.value
    assert (found.key, found.sense, found.lba) == (Key.DATA_PROTECT, Sense.NO_SPACE, 3)


def test_a_cache_is_off_before_it_is_flushed_and_an_ejected_disk_is_safe() -> None:
    storage = Storage(new_memory(SIZE))
    options = UnitOptions(ram=SIZE, removable=True)
    unit = Unit(options, (0, 0), UnitState(cached=1), storage, cached=True)
    seen: list[tuple[bool, bool]] = []

    class Watched(Storage):
        def flush(self) -> None:
            seen.append((unit.durable, bool(unit.state.ejected)))

    unit.storage = Watched(storage.fd)
    off = bytes((0, 0, 0, 0, 8, 18)) + bytes(18)
    asked = SimpleNamespace(data=lambda _: off, done=lambda *_: None)
    asked.cdb = bytes((Op.MODE_SELECT_6, 0x10, 0, 0, len(off))) + bytes(11)
    serve_command(unit, cast("Any", asked))
    asked.cdb = bytes((Op.START_STOP_UNIT, 0, 0, 0, 2)) + bytes(11)
    serve_command(unit, cast("Any", asked))
    assert seen == [(True, False), (True, False)] and unit.state.ejected
    unit.close()


def reloading(tmp_path: Path, unplugged: str) -> Path:
    path = tmp_path / "scsi.yaml"
    path.write_text(
        f"socket: {tmp_path}/s\ndevice:\n  type: scsi\n  request_queues: 2\n"
        f"  unplugged: {unplugged}\n"
        "  luns:\n    - image: ./disk\n    - ram: 1MiB\n      lun: 300\n    - ram: 1MiB\n"
    )
    return path


def test_a_reload_has_units_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    with serve(reloading(tmp_path, "[2]")) as made, made.guest(queues=4) as guest:
        driver, other = Driver(guest), Driver(guest, 3)
        guest.queues[EVENT].keep_filled(8, 16)
        assert driver.ready(to=lun(2)).response == ScsiResponse.BAD_TARGET
        reloading(tmp_path, "[1]")
        assert any("unplugged" in line for line in made.reload())
        said = sorted(driver.event() for _ in range(2))
        gone = bytes((1, 1, 0x41, 0x2C, 0, 0, 0, 0))
        assert said == sorted(
            [
                (ScsiEvent.TRANSPORT_RESET, gone, ResetReason.REMOVED),
                (ScsiEvent.TRANSPORT_RESET, bytes((1, 2, *bytes(6))), ResetReason.RESCAN),
            ]
        )
        for each in (driver, other):
            assert each.ready(to=lun(1, 300)).response == ScsiResponse.BAD_TARGET
            assert each.ready(to=lun(2)).good


def test_an_image_that_has_grown_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    with serve(reloading(tmp_path, "[]")) as made, made.guest(queues=4) as guest:
        driver, other = Driver(guest), Driver(guest, 3)
        guest.queues[EVENT].keep_filled(1, 8)  # too small: it comes back as it is
        os.truncate(tmp_path / "disk", 2 * SIZE)
        # Whatever else the reload is about, as what has to wait for the next front-end.
        file = reloading(tmp_path, "[]")
        file.write_text(file.read_text().replace("lun: 300", "lun: 301"))
        assert any("next front-end" in line for line in made.reload())
        made.wait_for_line(f"lun 0:0 has {2 * SIZE} bytes now")
        assert other.ready().why == (Key.UNIT_ATTENTION, Sense.CAPACITY_CHANGED)
        # Whoever has told it notes that behind its answer, so before the next one.
        assert other.ready().good
        assert driver.ready().good and driver.blocks() == (2 * BLOCKS, 512)
        assert driver.write(2 * BLOCKS - 1, b"e" * 512, 1).good
        token = guest.submit(EVENT, (), [16])
        event, address, reason = struct.unpack("<I8sI", guest.wait(token).content)
        assert (event, address, reason) == (ScsiEvent.PARAM_CHANGE, b"\1" + bytes(7), 0x092A)
        os.truncate(tmp_path / "disk", SIZE)
        # Before anybody has looked.
        assert driver.read(2 * BLOCKS - 1, 1, 512).why == (Key.MEDIUM_ERROR, Sense.READ_ERROR)


def test_an_event_for_which_there_was_no_buffer_is_told_later(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    with serve(reloading(tmp_path, "[]")) as made, made.guest(queues=4) as guest:
        for unplugged in ("[2]", "[]"):
            reloading(tmp_path, unplugged)
            before = len(made.lines)
            made.reload()
            made.wait_for_line("every worker is new", after=before)
        guest.keep_filled(EVENT, count=4, size=16)
        event, address, reason = Driver(guest).event()
        assert event == ScsiEvent.TRANSPORT_RESET | EVENTS_MISSED
        assert (address, reason) == (bytes((1, 2, *bytes(6))), ResetReason.RESCAN)


def paused(guest: Guest) -> bytes:
    """Its state, as of a guest that is paused to be migrated."""
    for queue in guest.queues:
        guest.stop_queue(queue)
    return guest.front_end.save_state()


@contextmanager
def going_on(served: Served, state: bytes) -> Iterator[Guest]:
    """The guest at the other end."""
    with served.guest(queues=4, start=False) as guest:
        guest.setup()
        guest.front_end.load_state(state)
        for queue in range(4):
            guest.start_queue(queue)
        yield guest


def test_a_migration_takes_along_what_was_set_and_what_is_to_be_told(folder: Path) -> None:
    luns: list[dict[str, Any]] = [
        {"ram": "4MiB"},
        {"image": str(folder / "cd"), "kind": "cdrom"},
        {"ram": "8MiB"},
    ]
    others = [*luns[:2], {"ram": "16MiB"}, {"ram": "1MiB"}]
    device = {"type": "scsi", "request_queues": 2}
    lock = bytes((Op.PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, 1, 0))
    eject = bytes((Op.START_STOP_UNIT, 0, 0, 0, 2, 0))
    off = bytes((0, 0, 0, 0, 8, 18)) + bytes(18)
    with serve({**device, "luns": luns}) as one, one.guest(queues=4) as guest:
        guest.front_end.set_config(CONFIG.offsets["sense_size"], struct.pack("<I", 64))
        driver = Driver(guest, sense_size=64)
        assert driver.do(lock, to=lun(1)).good
        assert driver.do(bytes((Op.MODE_SELECT_6, 0x10, 0, 0, len(off), 0)), [off]).good
        assert driver.manage(Tmf.LOGICAL_UNIT_RESET, lun(2)) == ScsiResponse.OK
        state = paused(guest)
    with serve({**device, "luns": others}) as two, going_on(two, state) as guest:
        assert CONFIG.unpack(guest.front_end.get_config(0, CONFIG.size))["sense_size"] == 64
        first, second = (Driver(guest, queue, sense_size=64) for queue in (2, 3))
        assert caching(second)[2] == 0 and caching(first, 2)[2] == 4
        assert first.do(eject, to=lun(1)).why == (ILLEGAL, Sense.REMOVAL_PREVENTED)
        # The last attention is the one that is told: its size is another here.
        assert second.ready(to=lun(2)).why == (Key.UNIT_ATTENTION, Sense.CAPACITY_CHANGED)
        assert second.ready(to=lun(2)).good
        guest.keep_filled(EVENT, count=4, size=16)
        assert {first.event() for _ in range(2)} == {
            (ScsiEvent.PARAM_CHANGE, bytes((1, 2, *bytes(6))), 0x092A),
            (ScsiEvent.TRANSPORT_RESET, bytes((1, 3, *bytes(6))), ResetReason.RESCAN),
        }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sense_size": 253}, "sense_size 253 are refused"),
        ({"cdb_size": 5}, "cdb_size 5"),
        ({"units": (UnitLeft(9, 0, SIZE, True, False, False, 0),)}, "there is no lun 9:0 here"),
        ({"units": (UnitLeft(0, 0, SIZE, True, True, False, 0),)}, "lun 0:0 has no tray here"),
        ({"units": (UnitLeft(0, 0, SIZE, True, False, False, 7),)}, "7 is not a valid Sense"),
        ({"units": ("no unit",)}, "Expected `array`"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(
    served: Served, change: dict[str, Any], reason: str
) -> None:
    with served.guest(queues=4) as guest:
        kind = state_bytes.kind_of(Scsi(ScsiOptions(luns=(UnitOptions(ram=SIZE),))))
        content, _version = state_bytes.unpack(kind, paused(guest))
        left = msgspec.structs.asdict(msgspec.msgpack.decode(content, type=Left))
        changed = msgspec.msgpack.encode([*{**left, **change}.values()])
        before = len(served.lines)
        with pytest.raises(Refused):
            guest.front_end.load_state(state_bytes.pack(kind, changed))
        assert reason in served.wait_for_line("load_state: ", after=before)
        for queue in range(4):
            guest.start_queue(queue)
        assert caching(Driver(guest))[2] == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "luns"),
        ({"luns": []}, "luns"),
        ({"luns": [{}]}, "0:0: it needs image or ram, and not both"),
        ({"luns": [{"ram": 1000}]}, "not a multiple of the block size 512"),
        ({"luns": [{"image": "/nowhere"}]}, "/nowhere: no such file"),
        ({"luns": [{"ram": 512, "kind": "cdrom"}]}, "a cdrom has an image"),
        ({"luns": [{"ram": 512, "target": 1}, {"ram": 512}]}, "two units are at target 1, lun 0"),
        ({"luns": [{"ram": 512, "target": 256}]}, "256"),
        ({"luns": [{"ram": 512}], "unplugged": [1]}, "there is no unit 1"),
        ({"luns": [{"ram": 512}], "queues": 3}, "request_queues says how many"),
        ({"luns": [{"ram": 512}], "request_queues": 65}, "65"),
        ({"luns": [{"ram": 512}] * 65}, "64"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "scsi.yaml"
    path.write_text(json.dumps({"socket": "./s", "device": {"type": "scsi", **options}}))
    with pytest.raises(ConfigErrors, match=reason):
        load(path)


def test_one_image_has_one_unit_and_nobody_goes_on_with_others(tmp_path: Path) -> None:
    image = str(tmp_path / "disk")
    Path(image).write_bytes(bytes(SIZE))
    moved = Scsi(ScsiOptions(luns=(UnitOptions(image=image, readonly=True),)))
    moved.shared = moved.shared_files()
    assert list(moved.replaced_files()) == []
    os.rename(image, f"{image}.old")
    Path(image).write_bytes(bytes(SIZE))
    assert list(moved.replaced_files()) == [("luns", f"another file is at {image} now")]
    for file in moved.shared.values():
        file.close()
    two = ScsiOptions(luns=(UnitOptions(image=image), UnitOptions(image=image)))
    assert ("luns", f"{image} is another unit's") in list(two.problems())
    hosts = [
        ScsiOptions(luns=(UnitOptions(image=image),)),
        ScsiOptions(luns=(UnitOptions(image=image, serial="1"),)),
        ScsiOptions(luns=(UnitOptions(image=image, readonly=True),), request_queues=2),
        ScsiOptions(luns=(UnitOptions(ram=512),)),
    ]
    for one in hosts:
        for other in hosts:
            left = Scsi(one).shared_files()
            assert Scsi(other).goes_on_with(left) == (one == other)
            for file in left.values():
                file.close()
