"""A bus with simulated chips, whose state outlives workers."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.devices.i2c_chips import MOST_MEMORY, Chip, Nak
from vuproc.devices.i2c_request import Segment, answer, parse
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.virtio import QUEUE_SIZE_MAX

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_CHIPS = 128
NOBODY = 0xFFFF
"""The number of no chip."""
FILE_MODE = 0o600
UNDRIVEN = b"\xff"
"""What is read where nobody pulls the line down."""


class Undo(ctypes.Structure):
    """How all was when a request began: its chip's number, position, and whether it is to fail."""

    _fields_: ClassVar = [
        ("position", ctypes.c_uint64),
        ("chip", ctypes.c_uint16),
        ("failing", ctypes.c_uint8),
    ]


class State(ctypes.Structure):
    """What outlives workers, beside the chips' memory."""

    _fields_: ClassVar = [
        ("positions", ctypes.c_uint64 * MOST_CHIPS),
        ("failing", ctypes.c_uint64),
        ("undo", Undo * QUEUE_SIZE_MAX),
    ]


def files_of(chips: Mapping[int, Chip]) -> dict[str, Fd]:
    """The shared files of all chips. Raises FileRefused, of `chips`."""
    files = {"state": shared.struct_file(State)}
    try:
        for address, chip in chips.items():
            if chip.memory_size:
                files[f"chip-{address:x}"] = _memory_file(address, chip)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return files


def _memory_file(address: int, chip: Chip) -> Fd:
    content = chip.initial()[: chip.memory_size].ljust(chip.memory_size, b"\0")
    name = chip.file or f"chip {address:#x}"
    try:
        if chip.file is None:
            file = Fd(os.memfd_create(name, os.MFD_CLOEXEC))
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            file = Fd(os.open(chip.file, flags, FILE_MODE))
        try:
            if not file.size:
                os.pwrite(file.fileno(), content, 0)
            if file.size != chip.memory_size:
                raise FileRefused(
                    "chips", f"{name}: {file.size} bytes, and the chip has {chip.memory_size}"
                )
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise FileRefused("chips", f"{name}: {error.strerror}") from error
    return file


def problem_of(chips: Mapping[int, Chip]) -> str | None:
    """Why such chips cannot be on one bus."""
    if len(chips) > MOST_CHIPS:
        return f"{len(chips)} chips, of at most {MOST_CHIPS}"
    for address, chip in chips.items():
        if not 0 <= chip.memory_size <= MOST_MEMORY:
            return f"chip {address:#x}: {chip.memory_size} bytes, of at most {MOST_MEMORY}"
    return None


class SimulatedBus:
    """The bus of one worker: each request is served when it comes, once, whoever dies."""

    def __init__(self, chips: Mapping[int, Chip], files: Mapping[str, Fd]) -> None:
        self._state = shared.struct(State, files["state"])
        self._chips = dict(chips)
        self._numbers = {address: number for number, address in enumerate(chips)}
        for address, chip in chips.items():
            file = files.get(f"chip-{address:x}")
            if file is not None:
                chip.memory = memoryview(mmap.mmap(file.fileno(), chip.memory_size))
            chip.position = self._state.positions[self._numbers[address]]
            chip.attached()

    def begin(self, request: Request) -> None:
        """Serve a request: noted before it is marked, and marked before anything is done."""
        segment, grouped = parse(request)
        undo = self._state.undo[request.head]
        number = NOBODY if segment is None else self._numbers.get(segment.address, NOBODY)
        undo.chip, undo.failing = number, self._state.failing
        undo.position = 0 if number == NOBODY else self._state.positions[number]
        request.resubmit = "fail"  # from here on it comes to `again`
        self._serve(request, segment, grouped)

    def again(self, request: Request) -> None:
        """Serve what a dead worker had begun, from where that began."""
        undo = self._state.undo[request.head]
        self._state.failing = undo.failing
        if undo.chip != NOBODY:
            self._state.positions[undo.chip] = undo.position
        self._serve(request, *parse(request))

    def failed(self, request: Request) -> None:
        """A chip's code has raised something else than Nak."""
        self._finish(request, None, parse(request)[1])

    def reset(self) -> None:
        """Nothing is to fail any more."""
        self._state.failing = 0

    def _serve(self, request: Request, segment: Segment | None, grouped: bool) -> None:
        content = None
        if segment is not None and not self._state.failing:
            content = self._transfer(segment)
        self._finish(request, content, grouped)

    def _finish(self, request: Request, content: bytes | None, grouped: bool) -> None:
        """Answer; what belongs to a request that has failed is to fail as well."""
        answer(request, content)
        self._state.failing = content is None and grouped

    def _transfer(self, segment: Segment) -> bytes | None:
        """What was read; None: nobody is there, or it does not want to."""
        chip = None if segment.ten_bit else self._chips.get(segment.address)
        if chip is None:
            return None
        number = self._numbers[segment.address]
        chip.position = self._state.positions[number]
        try:
            if not segment.reads:
                chip.write(segment.data)
                content = b""
            else:
                content = chip.read(segment.wanted)[: segment.wanted].ljust(
                    segment.wanted, UNDRIVEN
                )
        except Nak:
            return None
        self._state.positions[number] = chip.position
        return content
