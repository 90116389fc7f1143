"""The SPI controller with the built-in driver: its checks, simulated chips, and those of a host."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.chips import Rig
from vuproc.device_file.check import load
from vuproc.devices.spi import MAX_DELAY_NS, Spi
from vuproc.devices.spi_chip import HostChip, Settings
from vuproc.devices.spi_flash import PAGE, SR_WEL, Flash, FlashState, Opcode, new_content
from vuproc.devices.spi_options import SpiOptions
from vuproc.errors import ConfigErrors, FileRefused
from vuproc.fd import Fd
from vuproc.spec.spi import CONFIG, TRANSFER_HEAD, SpiMode, SpiResult, SpiSupport
from vuproc.testing import Guest, Served, serve

pytestmark = pytest.mark.timeout(90)

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
OK, PARAM_ERR, TRANS_ERR = SpiResult.TRANS_OK, SpiResult.PARAM_ERR, SpiResult.TRANS_ERR
SIZE = 64 << 10
WIRE, COUNTER, FLASH = 0, 1, 2


@pytest.fixture(scope="module")
def rig() -> Iterator[Served]:
    chips = ["loopback", "loopback", "flash"]
    with serve(Rig, chips=chips, flash_size=SIZE, max_frequency=1_000_000) as served:
        yield served


def transfer(
    guest: Guest, tx: bytes = b"", rx: int = 0, select: int = WIRE, **fields: int
) -> tuple[SpiResult, bytes]:
    """Result, and what was received, of a transfer as Linux's driver makes it."""
    head = TRANSFER_HEAD.pack(**{"chip_select_id": select, "bits_per_word": 8, **fields})
    done = guest.do(0, [head, tx] if tx else [head], [rx, 1] if rx else [1])
    result = SpiResult(done.data[-1][0])
    if result is not OK:
        return result, b""
    assert done.written == rx + 1
    return result, done.data[0] if rx else b""


class Driver:
    """A driver of the flash, that makes a transfer of each part of a command, as Linux's does."""

    def __init__(self, guest: Guest, select: int = FLASH) -> None:
        self.guest = guest
        self.select = select

    def do(
        self, opcode: Opcode, address: int | None = None, data: bytes = b"", rx: int = 0
    ) -> bytes:
        parts = [bytes((opcode,))]
        if address is not None:
            parts.append(address.to_bytes(3, "big"))
        if opcode in (Opcode.FAST_READ, Opcode.RDSFDP):
            parts.append(b"\0")
        if data:
            parts.append(data)
        for part in parts:
            assert transfer(self.guest, part, select=self.select) == (OK, b"")
        if not rx:
            return b""
        result, received = transfer(self.guest, rx=rx, select=self.select)
        assert result is OK
        return received

    def read(self, address: int, count: int) -> bytes:
        return self.do(Opcode.READ, address, rx=count)

    def program(self, address: int, data: bytes) -> None:
        self.do(Opcode.WREN)
        self.do(Opcode.PP, address, data)

    def erase(self, opcode: Opcode, address: int | None = None) -> None:
        self.do(Opcode.WREN)
        self.do(opcode, address)


@LAYOUTS
def test_what_is_sent_on_a_wire_is_received(rig: Served, packed: bool) -> None:
    with rig.guest(packed=packed) as guest:
        for data in (b"a", b"full duplex", os.urandom(20_000)):
            assert transfer(guest, data, len(data)) == (OK, data)
        assert transfer(guest, b"half duplex") == (OK, b"")
        assert transfer(guest, rx=5) == (OK, bytes(5))
        # A mode in which no chip is needed.
        assert transfer(guest, b"loop", 4, COUNTER, mode=SpiMode.LOOP) == (OK, b"loop")


def test_the_configuration_space_says_what_there_is(rig: Served) -> None:
    with rig.guest() as guest:
        said = CONFIG.unpack(guest.config(CONFIG.size))
    four = SpiSupport.CPHA_0 | SpiSupport.CPHA_1 | SpiSupport.CPOL_0 | SpiSupport.CPOL_1
    assert CONFIG.size == 32
    assert (said["cs_max_number"], said["cs_change_supported"]) == (3, 1)
    assert (said["tx_nbits_supported"], said["rx_nbits_supported"]) == (0, 0)
    assert said["bits_per_word_mask"] == 1 << 7
    assert said["mode_func_supported"] == four | SpiSupport.CS_HIGH | SpiSupport.LOOPBACK
    assert (said["max_freq_hz"], said["max_cs_hold_ns"]) == (1_000_000, MAX_DELAY_NS)


def test_c47_transfers_that_ask_for_what_is_not_there_are_refused(rig: Served) -> None:
    with rig.guest() as guest:
        for fields in (
            {"select": 3},
            {"select": 255},
            {"bits_per_word": 0},
            {"bits_per_word": 16},
            {"bits_per_word": 255},
            {"cs_change": 2},
            {"tx_nbits": 2},
            {"rx_nbits": 8},
            {"rx_nbits": 3},
            {"mode": SpiMode.LSB_FIRST},
            {"mode": 0x20},
            {"mode": 0x80000000},
            {"freq": 1_000_001},
            {"word_delay_ns": MAX_DELAY_NS + 1},
            {"cs_setup_ns": 0xFFFFFFFF},
            {"cs_delay_hold_ns": MAX_DELAY_NS + 1},
            {"cs_change_delay_inactive_ns": MAX_DELAY_NS + 1},
        ):
            assert transfer(guest, b"ab", 2, **fields) == (PARAM_ERR, b""), fields
        # Both ways they have one length, and one way at least has something.
        assert transfer(guest, b"ab", 3) == (PARAM_ERR, b"")
        assert transfer(guest) == (PARAM_ERR, b"")
        good = {"tx_nbits": 1, "rx_nbits": 0, "mode": 7, "freq": 1_000_000, "cs_change": 1}
        assert transfer(guest, b"ab", 2, cs_setup_ns=MAX_DELAY_NS, **good) == (OK, b"ab")
        head = TRANSFER_HEAD.pack(bits_per_word=8)
        assert guest.do(0, [head[:31]], [1]).content == bytes((PARAM_ERR,))
        assert guest.do(0, [], [5]).data[0][-1] == PARAM_ERR
        # Without room for a result there is none; the parts may be in any pieces.
        assert guest.do(0, [head, b"ab"]).written == 0
        assert guest.do(0, [head[:7], head[7:] + b"a", b"b"], [1, 2]).data == (b"a", b"b\0")
        assert rig.status().queues[0].restarts == 0


def test_a_chip_of_ones_own_is_at_its_select(rig: Served) -> None:
    with rig.guest() as guest:
        guest.reset()
        first, before = transfer(guest, b"xx", 2, COUNTER)[1]
        # Kept selected, until the driver says so, or talks to another.
        assert transfer(guest, b"xx", 2, COUNTER)[1] == bytes((first + 1, before))
        assert transfer(guest, b"xx", 2, COUNTER, cs_change=1)[1] == bytes((first + 2, before))
        assert transfer(guest, rx=2, select=COUNTER)[1] == bytes((first + 3, before + 1))
        transfer(guest, b"x")
        # What it does not say is zero, and what is too much is left out.
        assert transfer(guest, rx=3, select=COUNTER)[1] == bytes((first + 4, before + 2, 0))
        assert transfer(guest, rx=1, select=COUNTER)[1] == bytes((first + 5,))
        assert transfer(guest, b"raise", select=COUNTER)[0] is TRANS_ERR
        assert transfer(guest, rx=1, select=COUNTER)[1] == bytes((first + 6,))


@LAYOUTS
def test_a_flash_is_erased_programmed_and_read(rig: Served, packed: bool) -> None:
    with rig.guest(packed=packed) as guest:
        flash = Driver(guest)
        assert flash.do(Opcode.RDID, rx=5) == bytes((0xEF, 0x40, 16, 0, 0))
        assert flash.do(Opcode.RDSR, rx=2) == b"\0\0"
        flash.do(Opcode.WREN)
        assert flash.do(Opcode.RDSR, rx=1) == bytes((SR_WEL,))
        flash.do(Opcode.WRDI)
        assert flash.do(Opcode.RDSR, rx=1) == b"\0"
        flash.erase(Opcode.CE)
        assert flash.read(0, SIZE) == b"\xff" * SIZE
        # Without the latch nothing is programmed, and with it once.
        flash.do(Opcode.PP, 0, b"no")
        flash.program(0, b"\xf0\x0f\xff")
        flash.do(Opcode.PP, 0, b"no")
        flash.program(0, b"\x3c\x3c\x00")
        assert flash.read(0, 4) == b"\x30\x0c\x00\xff"
        # A page has an end, behind which is its begin; the flash as well.
        flash.program(2 * PAGE - 2, b"abcd")
        assert flash.read(2 * PAGE - 2, 3) == b"ab\xff"
        assert flash.do(Opcode.FAST_READ, PAGE, rx=3) == b"cd\xff"
        flash.program(3 * PAGE, bytes(100) + bytes(range(PAGE)))
        assert flash.read(3 * PAGE, PAGE) == bytes(range(156, 256)) + bytes(range(156))
        flash.program(SIZE - 1, b"z")
        assert flash.read(SIZE - 1, 4) == b"z\x30\x0c\x00"
        for opcode, block in ((Opcode.SE, 4 << 10), (Opcode.BE_32K, 32 << 10)):
            flash.program(block, b"out")
            flash.program(2 * block - 3, b"out")
            flash.do(opcode, block + 5)
            assert flash.read(block, 3) == b"out"
            flash.erase(opcode, block + 5)
            assert flash.read(block, block) == b"\xff" * block
        assert flash.read(0, 1) == b"\x30"
        assert flash.do(Opcode.RDSFDP, 0, rx=4) == b"\xff" * 4


def test_a_command_may_be_in_one_transfer_or_in_many(rig: Served) -> None:
    with rig.guest() as guest:
        flash = Driver(guest)
        flash.erase(Opcode.SE, 0)

        def at_once(tx: bytes, rx: int = 0, **fields: int) -> bytes:
            result, received = transfer(guest, tx, rx, FLASH, **fields)
            assert result is OK
            return received

        at_once(bytes((Opcode.WREN,)))
        at_once(bytes((Opcode.PP, 0, 0, 8)) + b"data")
        assert at_once(bytes((Opcode.READ, 0, 0, 8, 0, 0, 0, 0)), 8) == b"\xff" * 4 + b"data"
        assert at_once(bytes((Opcode.RDID, 0, 0, 0)), 4) == b"\xff\xef\x40\x10"
        at_once(bytes((Opcode.READ, 0)))
        at_once(b"\0")
        at_once(b"\x08")
        assert at_once(b"", 2) + at_once(b"", 2) == b"data"
        # What is not finished is given up with the select, or by another.
        at_once(bytes((Opcode.READ, 0)), cs_change=1)
        assert at_once(bytes((Opcode.RDID,))) + at_once(b"", 1) == b"\xef"
        at_once(bytes((Opcode.PP,)))
        transfer(guest, b"?")
        assert at_once(bytes((Opcode.RDID,))) + at_once(bytes(1), 1) == b"\xef"
        at_once(bytes((Opcode.RDID,)))
        at_once(bytes((Opcode.RDSR,)))
        assert at_once(b"", 1) == b"\0"
        at_once(b"\xb7")
        assert at_once(b"", 2) == b"\xff\xff"
        guest.reset()
        assert at_once(b"", 2) == b"\xff\xff"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_inside_a_transfer_makes_it_once(tmp_path: Path, when: str) -> None:
    """At each transfer of a command."""
    wish = tmp_path / "wish"
    chips = ["loopback", "loopback", "flash"]
    with (
        serve(Rig, chips=chips, flash_size=SIZE, wish=str(wish)) as served,
        served.guest() as guest,
    ):
        steps = [
            (bytes((Opcode.WREN,)), 0),
            (bytes((Opcode.PP,)), 0),
            (b"\0\1", 0),
            (b"\2", 0),
            (b"data", 0),
            (bytes((Opcode.READ,)), 0),
            (b"\0\1\2", 0),
            (b"", 2),
            (b"", 2),
        ]
        received = b""
        for number, (tx, rx) in enumerate(steps):
            if number % 2 == (when == "after") or number >= 7:
                wish.write_text(when)
            result, part = transfer(guest, tx, rx, FLASH)
            assert result is OK
            assert not wish.exists()
            received += part
        assert received == b"data"
        assert served.status().queues[0].restarts >= 5


def test_the_flash_and_its_driver_go_on_whoever_dies(tmp_path: Path) -> None:
    image = tmp_path / "flash.bin"
    image.write_bytes(b"\xff" * SIZE)
    device = {"type": "spi", "chips": ["flash"], "flash_file": str(image)}
    pages = {number: os.urandom(PAGE) for number in range(24)}
    with serve(device, arguments=["--supervised"]) as served, served.guest() as guest:
        flash = Driver(guest, 0)
        for number, data in pages.items():
            flash.do(Opcode.WREN)
            for part in (bytes((Opcode.PP,)), (number * PAGE).to_bytes(3, "big")):
                assert transfer(guest, part)[0] is OK
            head = TRANSFER_HEAD.pack(bits_per_word=8)
            token = guest.submit(0, [head, data], [1])
            if number == 12:
                os.kill(served.status().pid, signal.SIGKILL)
            elif number % 4 == 0:
                served.kill_worker()
            assert guest.wait(token).content == bytes((OK,))
        assert flash.read(0, 24 * PAGE) == b"".join(pages.values())
        # Of several under way at a death the outcome of the last is known.
        tokens = [guest.submit(0, [head, b"\x9f", b""], [1]) for _ in range(8)]
        served.kill_worker()
        assert {guest.wait(token).content for token in tokens} <= {
            bytes((OK,)),
            bytes((TRANS_ERR,)),
        }
        assert flash.do(Opcode.RDID, rx=1) == b"\xef"
    assert image.read_bytes()[: 24 * PAGE] == b"".join(pages.values())


def test_a_transfer_that_hardware_may_have_made_is_not_made_again(tmp_path: Path) -> None:
    """A chip of ones own, too, unless it says otherwise."""
    state = FlashState()
    with Fd(new_content(SIZE)) as file:
        flash = Flash(file, SIZE, state)
        flash.begin(3)
        assert flash.transfer(bytes((Opcode.RDID, 0, 0)), 3) == b"\xff\xef\x40"
        later = Flash(file, SIZE, state)
        # It was made: what it gave is worked out from what was before it.
        assert later.again(3, bytes((Opcode.RDID, 0, 0)), 3) == b"\xff\xef\x40"
        assert state.made == 1
        assert later.again(4, b"", 1) is None
        later.begin(5)
        assert Flash(file, SIZE, state).again(5, b"", 1) == b"\x10"
        assert state.made == 2
        assert HostChip("/dev/spidev0.0").again(1, b"", 1) is None


def test_a_machine_takes_its_flash_along() -> None:
    device = {"type": "spi", "chips": ["flash"], "flash_size": "64KiB"}
    with serve(device) as here, here.guest() as guest:
        Driver(guest, 0).program(0, b"moved")
        # In the midst of a command, which a pause is not to end.
        assert transfer(guest, bytes((Opcode.READ, 0)))[0] is OK
        guest.stop_queue(0)
        guest.set_status(0)
        state = guest.front_end.save_state()
        guest.front_end.set_features(guest.front_end.features)
        guest.start_queue(0)
        assert transfer(guest, b"\0\1")[0] is OK
        assert transfer(guest, rx=4)[1] == b"oved"
        guest.reset()
        assert Driver(guest, 0).read(0, 5) == b"moved"
    with serve(device) as there, there.guest(start=False) as guest:
        guest.setup()
        guest.front_end.load_state(state)
        guest.start_queue(0)
        assert transfer(guest, b"\0\0")[0] is OK
        assert transfer(guest, rx=5)[1] == b"moved"
    for bad in (state[:10], state + b"more", b"\xff" * len(state)):
        spi = inline()
        with pytest.raises(ValueError, match="other chips"):
            spi.load_state(bad, 1)
        for file in spi.shared.values():
            file.close()


def inline() -> Spi:
    spi = Spi(SpiOptions(chips=("flash",), flash_size=SIZE))
    spi.shared = spi.shared_files()
    spi.setup(0)
    return spi


# A chip of a host, by a module that does what py-spidev does.


class FakeSpiDev:
    opened: list[FakeSpiDev]

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int]] = []
        self.path = ""
        self.set: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("mode", "cshigh", "lsbfirst", "bits_per_word"):
            self.set[name] = value
        else:
            super().__setattr__(name, value)

    def open_path(self, path: str) -> None:
        if path == "/dev/none":
            raise FileNotFoundError(path)
        self.path = path
        self.opened.append(self)

    def xfer2(self, values: list[int], speed: int) -> list[int]:
        self.calls.append((values, speed))
        return [value ^ 0xFF for value in values]

    def close(self) -> None:
        self.opened.remove(self)


def test_a_chip_of_the_host_is_spoken_to_as_py_spidev_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeSpiDev.opened = []
    fake = types.ModuleType("spidev")
    fake.__dict__["SpiDev"] = FakeSpiDev
    monkeypatch.setitem(sys.modules, "spidev", fake)
    chip = HostChip("/dev/spidev0.1")
    assert FakeSpiDev.opened == []
    chip.settings = Settings(phase=True, frequency=5000)
    assert chip.transfer(b"\1\2", 2) == b"\xfe\xfd"
    assert chip.transfer(b"\3", 0) == b""
    chip.settings = Settings(polarity=True, select_high=True, lsb_first=True, bits_per_word=16)
    assert chip.transfer(b"", 2) == b"\xff\xff"
    (spi,) = FakeSpiDev.opened
    assert spi.path == "/dev/spidev0.1"
    assert spi.calls == [([1, 2], 5000), ([3], 5000), ([0, 0], 0)]
    assert spi.set == {"mode": 2, "cshigh": True, "lsbfirst": True, "bits_per_word": 16}
    with pytest.raises(OSError, match="5000 bytes at once, and spidev takes"):
        chip.transfer(bytes(5000), 0)
    chip.close()
    assert FakeSpiDev.opened == []
    missing = HostChip("/dev/none")
    with pytest.raises(FileNotFoundError):
        missing.transfer(b"1", 1)
    missing.close()


def test_chips_of_the_host_have_what_spidev_can_do() -> None:
    said = CONFIG.unpack(Spi(SpiOptions(chips=("/dev/spidev0.0", "loopback"))).config_space())
    functions = said["mode_func_supported"]
    assert functions & SpiSupport.LSB_FIRST and not functions & SpiSupport.LOOPBACK
    assert said["bits_per_word_mask"] == 1 << 7 | 1 << 15
    assert said["max_word_delay_ns"] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"chips": []}, "chips"),
        ({"chips": ["eeprom"]}, "'eeprom' is neither loopback, flash nor the path of a device"),
        ({"chips": ["flash", "flash"]}, "one flash at most"),
        ({"chips": ["/nowhere"]}, "/nowhere: no device is there"),
        ({"chips": ["/dev/null"]}, r"needs py-spidev.*pip install 'vuproc\[spi\]'"),
        ({"flash_size": "1MiB"}, "there is no flash in chips"),
        ({"chips": ["flash"], "flash_size": 100_000}, "100000 is no power of two"),
        ({"chips": ["flash"], "flash_size": "32MiB"}, "flash_size"),
        ({"chips": ["flash"], "flash_file": "/nowhere"}, "No such file"),
        ({"chips": ["flash"], "flash_file": "/dev/null"}, "no regular file"),
        ({"chips": ["flash"], "flash_file": "spi.json"}, "no power of two from 64 KiB to 16 MiB"),
        ({"queues": 1}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr("vuproc.devices.spi_options.library_is_there", lambda: False)
    file = tmp_path / "spi.json"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "spi", **options}}))
    with pytest.raises(ConfigErrors, match=reason):
        load(file)


def test_nobody_goes_on_with_the_flash_of_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    options = [
        SpiOptions(),
        SpiOptions(chips=("flash",), flash_size=SIZE),
        SpiOptions(chips=("flash",), flash_size=2 * SIZE),
        SpiOptions(chips=("flash",), flash_file=str(tmp_path / "one")),
        SpiOptions(chips=("flash",), flash_file=str(tmp_path / "two")),
    ]
    for one in options:
        left = Spi(one).shared_files()
        for other in options:
            assert Spi(other).goes_on_with(left) == (one == other)
        for file in left.values():
            file.close()


def test_a_flash_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    image = tmp_path / "flash.bin"
    image.write_bytes(bytes(SIZE))
    spi = Spi(SpiOptions(chips=("flash",), flash_file=str(image)))
    spi.shared = spi.shared_files()
    assert list(spi.replaced_files()) == []
    (tmp_path / "other").write_bytes(bytes(SIZE))
    os.replace(tmp_path / "other", image)
    assert list(spi.replaced_files()) == [("flash_file", "another file is there now")]
    image.unlink()
    with pytest.raises(FileRefused, match="No such file"):
        list(spi.replaced_files())
    for file in spi.shared.values():
        file.close()
