"""The dirty log as the front-end gives it: which are legal, and who is to write to it."""

from __future__ import annotations

from collections.abc import Mapping

from vuproc.errors import MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.vhost_user.effects import LogArea

_ADDRESS_END = 1 << 64


def make_log_area(fields: Mapping[str, int], fd: Fd) -> LogArea:
    """The log of SET_LOG_BASE, checked by itself; MessageRefused if it is not legal.

    One that is too small for the guest's memory is legal, as that may grow while a front-end
    migrates: pages beyond it are not marked.
    """
    area = LogArea(fd, fields["mmap_offset"], fields["mmap_size"])
    if area.size == 0:
        raise MessageRefused("the dirty log has size 0")
    end = area.offset + area.size
    if end > _ADDRESS_END:
        raise MessageRefused(f"the dirty log: {area.offset:#x} + {area.size:#x} wraps around")
    if fd.kind is not FdKind.FILE:
        raise MessageRefused("the dirty log's descriptor is no file")
    if not (fd.readable and fd.writable):
        raise MessageRefused("the dirty log's file is not open for reading and writing")
    # As for guest memory: a mark past the end of the file is SIGBUS.
    if end > fd.size:
        raise MessageRefused(f"the dirty log ends at {end:#x} of a file of {fd.size:#x} bytes")
    return area


def check_used_log(log: int, length: int) -> None:
    """MessageRefused if the writes to a used ring of `length` bytes cannot be logged at `log`."""
    if log + length > _ADDRESS_END:
        raise MessageRefused(f"the used ring's log address {log:#x} + {length:#x} wraps around")
