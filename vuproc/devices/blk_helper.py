"""What the helper of a disk does: it writes back now and then, when it is asked to, and at the end.

One process at a time: the one before us may have been killed and not be gone yet.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vuproc.devices.blk_overlay import Overlay
from vuproc.devices.blk_overlay_file import Layout
from vuproc.devices.blk_overlay_table import ChunkTable
from vuproc.devices.blk_write_back import (
    AGAIN_S,
    Conflict,
    Ended,
    WriteBack,
    conflict,
    mark_synced,
)
from vuproc.devices.blk_write_files import WriteFiles
from vuproc.devices.blk_write_marks import Marks
from vuproc.devices.image_lock import FLOCK
from vuproc.devices.write_back_status import CONFLICT, TRYING
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.device import Device

_ONE_HELPER_AT = 1 << 62
"""Lock of the open file: the overlay's, behind all that anybody else locks there."""


class BlkHelper:
    """All descriptors stay the caller's."""

    def __init__(
        self,
        writing: WriteFiles,
        files: Mapping[str, Fd],
        file: Fd,
        table: ChunkTable,
        marks: Marks,
        device: Device,
        ending: Fd,
        interval_s: float,
    ) -> None:
        self._writing = writing
        self._files = files
        self._file = file
        self._table = table
        self._marks = marks
        self._log = device.log
        self._status = writing.status(files)
        self._bell = writing.bell(files)
        self._ending = ending
        self._interval_s = interval_s

    def run(self) -> None:
        """Until the end. Raises OSError, FileRefused."""
        with ExitStack() as stack:
            self._be_the_only_one(stack)
            self._marks.give_up()
            reader = self._writing.base.reader(self._files)
            stack.callback(reader.close)
            pieces = self._writing.map(self._files)
            stack.callback(pieces.close)
            overlay = Overlay(None, self._file, self._table, pieces.size, Layout(pieces.size))
            run = WriteBack(
                self._file,
                self._marks,
                reader,
                pieces,
                self._status,
                self._log,
                sync=overlay.sync,
                pause=self._pause,
            )
            self._status.left = 0
            self._turns(run)

    def _turns(self, write_back: WriteBack) -> None:
        tries = 0
        due = time.monotonic() + self._interval_s
        if self._status.asked != self._status.answered:
            due = 0.0
        while True:
            ending = self._wait(due)
            try:
                if self._status.state != CONFLICT:
                    write_back.run()
                tries = 0
                due = time.monotonic() + self._interval_s
            except Conflict as error:
                self._marks.give_up()
                conflict(self._status, self._log, error)
            except Ended:
                pass  # what it was is said
            except OSError as error:
                self._marks.give_up()
                if tries == 0:
                    self._log.error("write-back: %s; trying again", error)
                self._status.say(TRYING, str(error))
                due = time.monotonic() + AGAIN_S[min(tries, len(AGAIN_S) - 1)]
                tries += 1
            if ending:
                self._marks.give_up()
                mark_synced(self._file)
                return

    def _wait(self, due: float) -> bool:
        """Until a run is due, or was asked for, or the end, and whether it is that."""
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        left_s = None if self._status.state == CONFLICT else max(0.0, due - time.monotonic())
        ready = [number for number, _ in poll.poll(None if left_s is None else left_s * 1000)]
        if self._bell.fileno() in ready:
            os.eventfd_read(self._bell.fileno())
        return self._ending.fileno() in ready

    def _pause(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def _be_the_only_one(self, stack: ExitStack) -> None:
        path = f"/proc/self/fd/{self._file.fileno()}"
        own = stack.enter_context(Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC)))
        lock = FLOCK.pack(fcntl.F_WRLCK, 0, _ONE_HELPER_AT, 1, 0)
        fcntl.fcntl(own.fileno(), fcntl.F_OFD_SETLKW, lock)
