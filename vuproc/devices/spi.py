"""virtio-spi: an SPI controller with simulated chips, or those of this host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.spi_chip import BUFFER, Chip, HostChip, Settings, Wire
from vuproc.devices.spi_flash import MAX_SIZE, Flash, FlashState, new_content
from vuproc.devices.spi_options import DEFAULT_SIZE, FLASH, WIRE, SpiOptions, opened
from vuproc.errors import FileRefused, RequestAbandoned
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs, existing
from vuproc.spec.spi import (
    CONFIG,
    SINGLE,
    TRANSFER_HEAD,
    SpiMode,
    SpiResult,
    SpiSupport,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MAX_TRANSFER = 16 << 20
"""Bytes of one transfer: as many as the largest flash has."""
MAX_DELAY_NS = 1_000_000_000
"""The longest delay that the driver may ask for where no time passes."""
MOST_ATTEMPTS = 3
"""Workers that may die in a transfer before it is given up."""
_WORDS, _HOST_WORDS = 1 << 7, 1 << 7 | 1 << 15
"""Bits of a word: bit n stands for n + 1. Of simulated chips, and of spidev's."""
_DELAYS = ("word_delay_ns", "cs_setup_ns", "cs_delay_hold_ns", "cs_change_delay_inactive_ns")


class _State(ctypes.Structure):
    """What outlives a worker."""

    _fields_: ClassVar = [("flash", FlashState), ("selected", ctypes.c_uint64)]


class Spi(Device):
    """virtio-spi: an SPI controller.

    Override `make_chip` for chips of your own, in Python. One queue of transfers.
    """

    device_id = 45
    queues = 1
    options_type: ClassVar[type[Options]] = SpiOptions
    options: SpiOptions

    # What the master asks.

    def config_space(self) -> bytes:
        """virtio 1.4, 5.21.4: what transfers may ask for."""
        return CONFIG.pack(**self._offer())

    def _offer(self) -> dict[str, int]:
        host = any(name.startswith("/") for name in self.options.chips)
        functions = SpiSupport.CPHA_0 | SpiSupport.CPHA_1 | SpiSupport.CPOL_0 | SpiSupport.CPOL_1
        functions |= SpiSupport.CS_HIGH
        functions |= SpiSupport.LSB_FIRST if host else SpiSupport.LOOPBACK
        delay = 0 if host else MAX_DELAY_NS
        return {
            "cs_max_number": len(self.options.chips),
            "cs_change_supported": 1,
            "bits_per_word_mask": _HOST_WORDS if host else _WORDS,
            "mode_func_supported": functions,
            "max_freq_hz": self.options.max_frequency,
            "max_word_delay_ns": delay,
            "max_cs_setup_ns": delay,
            "max_cs_hold_ns": delay,
            "max_cs_inactive_ns": delay,
        }

    def sandbox_needs(self) -> Needs:
        """Chips of the host, which are opened when they are used."""
        devices = tuple(chip for chip in self.options.chips if chip not in (WIRE, FLASH))
        readable = existing(str(BUFFER)) if devices else ()
        return self.needs.with_more(Needs(devices=devices, readable=readable))

    def follows_at_once(self) -> bool:
        """A chip of the host is opened by each worker."""
        return type(self) is Spi and not set(self.options.chips) - {WIRE, FLASH}

    def shared_files(self) -> dict[str, Fd]:
        """The content of the flash, and what is remembered between transfers."""
        files = {self._named("state"): shared.struct_file(_State)}
        if FLASH in self.options.chips:
            files[self._named("flash")] = self._content()
        return files

    def _content(self) -> Fd:
        if self.options.flash_file is not None:
            return opened(self.options.flash_file)
        try:
            return Fd(new_content(self.options.flash_size or DEFAULT_SIZE))
        except OSError as error:
            raise FileRefused("flash_size", f"memory: {error.strerror}") from error

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """The file of the flash, if another is at its path by now. Raises FileRefused."""
        ours = self.shared.get(self._named("flash"))
        if ours is None or self.options.flash_file is None:
            return
        with opened(self.options.flash_file) as there:
            if not os.path.samestat(os.fstat(there.fileno()), os.fstat(ours.fileno())):
                yield "flash_file", "another file is there now"

    def _named(self, what: str) -> str:
        """A name that says whose it is: a device with other chips is not to go on with it."""
        options = self.options
        return shared.named(what, options.chips, options.flash_file, options.flash_size)

    # What a worker calls.

    def save_state(self) -> bytes:
        """What is remembered between transfers, and what a flash in memory holds."""
        content = self.shared.get(self._named("flash"))
        if content is None or self.options.flash_file is not None:
            return bytes(self._state)
        return bytes(self._state) + os.pread(content.fileno(), MAX_SIZE, 0)

    def load_state(self, data: bytes, version: int) -> None:
        """Go on as another has left it. A flash in a file has its content there."""
        content = self.shared.get(self._named("flash"))
        size = ctypes.sizeof(_State)
        state, rest = _State.from_buffer_copy(data.ljust(size, b"\0")), data[size:]
        in_memory = content is not None and self.options.flash_file is None
        wanted = os.fstat(content.fileno()).st_size if content and in_memory else 0
        if len(data) < size or len(rest) != wanted or not state.flash.valid():
            raise ValueError("it is that of a device with other chips")
        if content is not None and rest:
            os.pwrite(content.fileno(), rest, 0)
        ctypes.memmove(ctypes.byref(self._state), ctypes.byref(state), size)

    def make_chip(self, select: int) -> Chip:
        """The chip at this select: that of the options. In the worker, once for each."""
        name = self.options.chips[select]
        if name == WIRE:
            return Wire()
        if name != FLASH:
            return HostChip(name)
        file = self.shared[self._named("flash")]
        return Flash(file, os.fstat(file.fileno()).st_size, self._state.flash)

    def setup(self, queue: int) -> None:
        """Make the chips."""
        self._state = shared.struct(_State, self.shared[self._named("state")])
        self._limits = self._offer()
        self.chips = [self.make_chip(select) for select in range(len(self.options.chips))]
        """By their chip selects."""

    def teardown(self) -> None:
        """Close what is open."""
        for chip in self.chips:
            chip.close()

    def reset(self) -> None:
        """No chip is selected, as at first."""
        self._deselect()

    def handle(self, request: Request) -> None:
        """Make one transfer. The result is the last byte."""
        self._serve(request)

    def fail(self, request: Request, error: BaseException) -> None:
        """A chip that raised; or a transfer that the worker before us had begun when it died."""
        if not isinstance(error, RequestAbandoned) or error.attempts >= MOST_ATTEMPTS:
            _finish(request, SpiResult.TRANS_ERR)
            return
        try:
            self._serve(request, again=True)
            request.finish()
        except Exception as raised:
            self.log.warning("a transfer that a worker died in has failed: %s", raised)
            _finish(request, SpiResult.TRANS_ERR)

    def _serve(self, request: Request, *, again: bool = False) -> None:
        tx_length = request.readable_total - TRANSFER_HEAD.size
        rx_length = request.writable_total - 1
        if rx_length < 0:
            return  # nowhere to put a result, so nothing is done
        if tx_length < 0:
            result = SpiResult.PARAM_ERR
        else:
            count = TRANSFER_HEAD.size + min(tx_length, MAX_TRANSFER)
            # With `again` the log has read some of it already.
            data = _copied(request, count) if again else request.read(count)
            head = TRANSFER_HEAD.unpack(data)
            result = self._checked(head, tx_length, rx_length)
            if result == SpiResult.TRANS_OK:
                tx = data[TRANSFER_HEAD.size :]
                received = self._transfer(request, head, tx, rx_length, again)
                if received is None:
                    result = SpiResult.TRANS_ERR
                else:
                    request.write(received[:rx_length].ljust(rx_length, b"\0"))
        request.put(-1, bytes((result,)))

    def _checked(self, head: dict[str, Any], tx_length: int, rx_length: int) -> SpiResult:
        """Whether a transfer asks for what there is (virtio 1.4, 5.21.6)."""
        offer, mode = self._limits, head["mode"]
        functions = offer["mode_func_supported"]
        unknown = ~int(SpiMode.CPHA | SpiMode.CPOL | SpiMode.CS_HIGH)
        for flag, wanted in (
            (SpiMode.LSB_FIRST, SpiSupport.LSB_FIRST),
            (SpiMode.LOOP, SpiSupport.LOOPBACK),
        ):
            if functions & wanted:
                unknown &= ~int(flag)
        bits = head["bits_per_word"]
        good = (
            head["chip_select_id"] < offer["cs_max_number"]
            and 0 < bits <= 32
            and bool(offer["bits_per_word_mask"] & 1 << bits - 1)
            and head["cs_change"] in (0, 1)
            and head["tx_nbits"] in SINGLE
            and head["rx_nbits"] in SINGLE
            and not mode & unknown
            and (not offer["max_freq_hz"] or head["freq"] <= offer["max_freq_hz"])
            and all(head[name] <= offer["max_word_delay_ns"] for name in _DELAYS)
            and bool(tx_length or rx_length)
            and (not tx_length or not rx_length or tx_length == rx_length)
        )
        if not good:
            return SpiResult.PARAM_ERR
        if max(tx_length, rx_length) > MAX_TRANSFER:
            return SpiResult.TRANS_ERR
        return SpiResult.TRANS_OK

    def _transfer(
        self, request: Request, head: dict[str, Any], tx: bytes, rx_length: int, again: bool
    ) -> bytes | None:
        """What is received; None if it is not known what became of it."""
        if head["mode"] & SpiMode.LOOP:
            return tx
        select = head["chip_select_id"]
        chip = self.chips[select]
        if self._state.selected != select + 1:
            self._deselect()
            self._state.selected = select + 1
        chip.settings = _settings(head)
        received: bytes | None
        if again:
            received = chip.again(request.head, tx, rx_length)
        else:
            chip.begin(request.head)
            if not chip.repeatable:
                # From here on something may have changed for good.
                request.resubmit = "fail"
            received = chip.transfer(tx, rx_length)
        if head["cs_change"]:
            self._deselect()
        return received

    def _deselect(self) -> None:
        """In this order: a death in between does it once more."""
        selected = self._state.selected
        if 0 < selected <= len(self.chips):
            self.chips[selected - 1].deselect()
        self._state.selected = 0


def _settings(head: dict[str, Any]) -> Settings:
    mode = head["mode"]
    return Settings(
        phase=bool(mode & SpiMode.CPHA),
        polarity=bool(mode & SpiMode.CPOL),
        select_high=bool(mode & SpiMode.CS_HIGH),
        lsb_first=bool(mode & SpiMode.LSB_FIRST),
        bits_per_word=head["bits_per_word"],
        frequency=head["freq"],
    )


def _copied(request: Request, count: int) -> bytes:
    """The first bytes that the driver gave to read, wherever the cursor is."""
    came = bytearray()
    for segment in request.readable_segments:
        came += segment[: count - len(came)]
    return bytes(came)


def _finish(request: Request, result: SpiResult) -> None:
    if request.writable_total:
        request.put(-1, bytes((result,)))
    request.finish()
