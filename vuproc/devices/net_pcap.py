"""Frames in files, as tcpdump and Wireshark have them (pcap, version 2.4)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from typing import ClassVar

from vuproc.devices.net_backend import Backend
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.net import MAX_FRAME

SNAP_BYTES = 262144
ETHERNET = 1
"""LINKTYPE_ETHERNET."""
_MAGIC = 0xA1B2C3D4
_MAGIC_NS = 0xA1B23C4D
"""That of a file whose times have nanoseconds."""
_FILE = "IHHiIII"
"""Magic, version, time zone, accuracy, longest frame, kind of link."""
_RECORD = "IIII"
"""Seconds, their fraction, bytes that are here, bytes that there were."""
HEADER_BYTES = struct.calcsize(f"<{_FILE}")
RECORD_BYTES = struct.calcsize(f"<{_RECORD}")


def capture_file(path: str, option: str) -> Fd:
    """A file to record frames in: a new one gets its header, an old one is gone on with.

    Raises FileRefused, of `option`, for a file that is no capture of Ethernet frames of ours.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        file = Fd(os.open(path, flags, 0o600))
    except OSError as error:
        raise FileRefused(option, f"{path}: {error.strerror}") from error
    header = struct.pack(f"<{_FILE}", _MAGIC, 2, 4, 0, 0, SNAP_BYTES, ETHERNET)
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileRefused(option, f"{path}: not a regular file")
        there = os.pread(file.fileno(), HEADER_BYTES, 0)
        if not there:
            os.write(file.fileno(), header)
        elif there[:8] + header[8:-4] + there[-4:] != header:
            raise FileRefused(option, f"{path}: there is something else in it")
    except BaseException:
        file.close()
        raise
    return file


class Capture:
    """Records frames in a file of `capture_file`; each is there whole."""

    def __init__(self, file: Fd) -> None:
        self._file = file

    def record(self, frame: bytes) -> None:
        """Append it, with the time. Raises OSError."""
        seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
        count = min(len(frame), SNAP_BYTES)
        head = struct.pack(f"<{_RECORD}", seconds, fraction // 1000, count, len(frame))
        os.write(self._file.fileno(), head + frame[:count])


class ReplayState(ctypes.Structure):
    """How far a file has been replayed, which outlives workers."""

    _fields_: ClassVar = [("position", ctypes.c_uint64)]


def replayed_file(path: str, option: str) -> Fd:
    """A capture to be replayed. Raises FileRefused, of `option`, if it is none."""
    try:
        file = Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise FileRefused(option, f"{path}: {error.strerror}") from error
    try:
        order = order_of(file)
        if order is None:
            raise FileRefused(option, f"{path}: no capture that tcpdump would read (pcap)")
        link = struct.unpack(order + _FILE, os.pread(file.fileno(), HEADER_BYTES, 0))[6]
        if link & 0xFFFF != ETHERNET:
            raise FileRefused(option, f"{path}: its frames are not Ethernet's")
    except BaseException:
        file.close()
        raise
    return file


def order_of(file: Fd) -> str | None:
    """The byte order of a capture, as `struct` has it; None if it is none."""
    head = os.pread(file.fileno(), HEADER_BYTES, 0)
    orders = "<>" if len(head) == HEADER_BYTES else ""
    for order in orders:
        if struct.unpack(order + _FILE, head)[0] in (_MAGIC, _MAGIC_NS):
            return order
    return None


class Replay(Backend):
    """Gives the driver the frames of a capture, one after the other, as it has buffers for them.

    What it sends is dropped. A worker that follows one which died goes on behind the frame that was
    under way.
    """

    patient: ClassVar[bool] = True

    def __init__(self, file: Fd, state: ReplayState) -> None:
        self._file = file
        self._state = state
        self._order = order_of(file) or "<"
        if state.position == 0:
            state.position = HEADER_BYTES

    def send(self, frame: bytes) -> bool:
        """Drop it."""
        return False

    def receive(self) -> bytes | None:
        """The next frame that fits; None at the end, and where the file makes no sense."""
        while True:
            at = self._state.position
            head = os.pread(self._file.fileno(), RECORD_BYTES, at)
            if len(head) < RECORD_BYTES:
                return None
            count = struct.unpack(self._order + _RECORD, head)[2]
            if count > SNAP_BYTES:
                return None
            frame = os.pread(self._file.fileno(), count, at + RECORD_BYTES)
            if len(frame) < count:
                return None
            self._state.position = at + RECORD_BYTES + count
            if 0 < count <= MAX_FRAME:
                return frame
