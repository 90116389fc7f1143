"""Why a device cannot be served: for the log, and for the program that has started its master."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from vuproc import texts
from vuproc.errors import (
    ConfigErrors,
    DeviceWrong,
    FileRefused,
    HostLacks,
    SegmentInUse,
    SegmentUnavailable,
    in_words,
)
from vuproc.listener import ListenError
from vuproc.pool.forkserver import CannotStart
from vuproc.pool.orphans import OldWorkerAlive
from vuproc.pool.process import WorkerLost, WorkerSetupError
from vuproc.program.messages import Refused, Whose

log = logging.getLogger("vuproc.master")

_REFUSALS: tuple[type[Exception], ...] = (
    WorkerSetupError,
    WorkerLost,
    CannotStart,
    OldWorkerAlive,
    SegmentInUse,
    SegmentUnavailable,
    HostLacks,
    ListenError,
    FileRefused,
    OSError,
)
"""What is nobody's bug here."""

_WHOSE: tuple[tuple[tuple[type[Exception], ...], Whose], ...] = (
    ((WorkerSetupError, WorkerLost, DeviceWrong, FileRefused), "device"),
    ((ListenError, SegmentInUse), "socket"),
    (_REFUSALS, "host"),
)
"""Whose matter it is; the first that fits counts."""
ERRORS_MOST = 64
"""Errors of a device file that a program is told of."""
ERRORS_BYTES = 48 << 10
"""Bytes of their texts, which must fit into one datagram."""


def refusal_of(error: Exception) -> Refused:
    """What a program is told of an error that its device cannot be served for."""
    if isinstance(error, ConfigErrors):
        return Refused("file", "", tuple(_fitting(error)))
    whose: Whose = next((whose for kinds, whose in _WHOSE if isinstance(error, kinds)), "bug")
    return Refused(whose, texts.block(in_words(error)))


def _fitting(errors: ConfigErrors) -> Iterator[tuple[str, int, int, str]]:
    """The first of the errors, as many as a message has room for."""
    room = ERRORS_BYTES
    for each in errors.errors[:ERRORS_MOST]:
        message = texts.line(each.message)
        room -= len(each.file.encode(errors="replace")) + len(message.encode())
        if room < 0:
            return
        yield each.file, each.line, each.column, message


def explain(error: Exception) -> None:
    """Log an error that ends us: Python would wait for whoever reads its standard error."""
    if isinstance(error, (*_REFUSALS, ConfigErrors)):
        log.error("%s", in_words(error))
    else:
        log.critical("the master failed", exc_info=error)
