"""One SCSI command on its way: its bytes, its data both ways, and the answer."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from vuproc.spec.scsi import REQUEST, RESPONSE, ScsiResponse
from vuproc.spec.scsi_commands import CHECK_CONDITION, GOOD, SENSE_BYTES, Key, Sense

if TYPE_CHECKING:
    from vuproc.shm.request import Request

_RESPONSE = struct.Struct(RESPONSE.format)
_FIXED_SENSE = struct.Struct(">BxBIB4xBB4x")
_MORE_SENSE = SENSE_BYTES - 8
_CURRENT, _INFORMATION = 0x70, 0x80
_GOOD, _OK = int(GOOD), int(ScsiResponse.OK)
CDB_MIN = 16
"""Bytes that a command has at least when it is looked at: shorter ones are followed by zeros."""


class Failed(Exception):
    """The request has not come to a logical unit, or does not fit."""

    def __init__(self, response: ScsiResponse) -> None:
        super().__init__(response)
        self.response = response


class CheckCondition(Exception):
    """The command ends with sense data. lba: the block that it is about."""

    def __init__(self, key: Key, sense: Sense, lba: int | None = None) -> None:
        super().__init__(key, sense)
        self.key = key
        self.sense = sense
        self.lba = lba


def invalid_field() -> CheckCondition:
    """A field of the command says what cannot be done."""
    return CheckCondition(Key.ILLEGAL_REQUEST, Sense.INVALID_FIELD_IN_CDB)


def sense_data(key: Key, sense: Sense, lba: int | None = None) -> bytes:
    """Sense data in the fixed format, 18 bytes (SPC-4, 4.5.3)."""
    known = lba is not None and lba < 1 << 32
    code = _CURRENT | (_INFORMATION if known else 0)
    information = lba if known else 0
    return _FIXED_SENSE.pack(code, key, information, _MORE_SENSE, *divmod(int(sense), 256))


class Task:
    """A request of a request queue.

    cdb: the command. out, room: bytes of data from the driver, and of room for those to it. Each of
    the verbs that end it does so once.
    """

    __slots__ = ("_answer_bytes", "_request", "_sense_size", "cdb", "lun", "out", "room")

    def __init__(self, request: Request, sense_size: int, cdb_size: int) -> None:
        """Read the header. Raises Failed if it is not whole; there is room for the answer."""
        self._request = request
        self._sense_size = sense_size
        self._answer_bytes = RESPONSE.size + sense_size
        self.room = request.writable_total - self._answer_bytes
        header = request.read(REQUEST.size + cdb_size)
        self.out = request.readable
        if len(header) < REQUEST.size + cdb_size:
            raise Failed(ScsiResponse.FAILURE)
        self.lun = header[:8]
        self.cdb = header[REQUEST.size :].ljust(CDB_MIN, b"\0")

    # What ends it.

    def reply(self, data: bytes, allocated: int | None = None) -> None:
        """Good, with as much of this data as the command has allocated room for."""
        count = len(data) if allocated is None else min(len(data), allocated)
        if count > self.room:
            raise Failed(ScsiResponse.OVERRUN)
        self._request.write(self._answer(residual=self.room - count))
        self._request.write(data[:count])
        self._request.finish()

    def done(self, used: int = 0) -> None:
        """Good, without data for the driver; so many bytes of its own were needed."""
        self._request.write(self._answer(residual=max(self.room, self.out - used)))
        self._request.finish()

    def read(self, file: int, offset: int, length: int, block: int) -> None:
        """Good, with `length` bytes of a file, straight to the driver's memory."""
        if length > self.room:
            raise Failed(ScsiResponse.OVERRUN)
        request = self._request
        request.write(self._answer(residual=self.room - length))
        done = 0
        while done < length:
            try:
                count = request.preadv(file, offset + done, length - done)
            except OSError as error:
                raise CheckCondition(
                    Key.MEDIUM_ERROR, Sense.READ_ERROR, (offset + done) // block
                ) from error
            if count == 0:
                # An image that has become shorter.
                raise CheckCondition(Key.MEDIUM_ERROR, Sense.READ_ERROR, (offset + done) // block)
            done += count
        request.finish()

    def write(self, file: int, offset: int, length: int, block: int, *, durable: bool) -> None:
        """Good, with `length` bytes of the driver's written to a file; durable: safe by then."""
        if length > self.out:
            raise Failed(ScsiResponse.OVERRUN)
        done = 0
        try:
            while done < length:
                done += self._request.pwritev(file, offset + done, length - done)
            if durable:
                os.fdatasync(file)
        except OSError as error:
            raise write_failed(error, (offset + done) // block) from error
        self.done(length)

    def data(self, count: int) -> bytes:
        """So many bytes of the driver's data."""
        if count > self.out:
            raise Failed(ScsiResponse.OVERRUN)
        return self._request.read(count)

    def check(self, condition: CheckCondition) -> None:
        """It ends with sense data."""
        sense = sense_data(condition.key, condition.sense, condition.lba)[: self._sense_size]
        answer = self._answer(
            residual=max(self.room, self.out), status=CHECK_CONDITION, length=len(sense)
        )
        self._request.put(0, answer[: RESPONSE.size] + sense.ljust(self._sense_size, b"\0"))
        self._request.finish(self._answer_bytes)

    def _answer(self, *, residual: int, status: int = _GOOD, length: int = 0) -> bytes:
        return _RESPONSE.pack(length, residual & 0xFFFFFFFF, 0, status, _OK) + bytes(
            self._sense_size
        )


def fail(request: Request, sense_size: int, response: ScsiResponse) -> None:
    """End a request that has not come to a unit. There is room for the answer."""
    answer = RESPONSE.pack(response=response) + bytes(sense_size)
    request.put(0, answer)
    request.finish(len(answer))


def write_failed(error: OSError, lba: int | None = None) -> CheckCondition:
    """What a driver is told of an error while something was changed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckCondition(Key.DATA_PROTECT, Sense.NO_SPACE, lba)
    return CheckCondition(Key.MEDIUM_ERROR, Sense.WRITE_ERROR, lba)
