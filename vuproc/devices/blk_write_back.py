"""Writes what a guest has changed back to the image in pieces that its overlay is of.

In the device's helper, a process of its own, which may be killed at any instruction. One run:

1. note its number in the overlay's file, on stable storage;
2. have the moment of which it writes (`Marks.begin`), and the overlay on stable storage;
3. put each changed piece as an object of this run;
4. exchange the manifest for one that names them, if it is still the one that was built upon;
5. note in the file, and in the map that workers read by, that this is the image now; then the
   pieces are not changed any more.

Dead before 4: the store has the image of before, and objects that nobody names. They are deleted by
the run after the next that comes to 4: not earlier, since what the dead one had sent may arrive
until somebody else has exchanged the manifest. Dead between 4 and 5: the number in the manifest is
found in the file, so it is ours. Replaced pieces are deleted before the next run begins.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vuproc.devices import blk_write_area as areas
from vuproc.devices import pieces_manifest
from vuproc.devices.blk_write_marks import Marks
from vuproc.devices.object_store import Exchanged, ObjectAbsent, ObjectUnavailable, Version
from vuproc.devices.pieces_manifest import BASE, ZEROS, Manifest, is_zeros, new_run, piece_name
from vuproc.devices.pieces_map import PiecesMap
from vuproc.devices.pieces_reader import PiecesReader
from vuproc.devices.write_back_status import CONFLICT, QUIET, TRYING, WRITING, WriteBackStatus
from vuproc.fd import Fd

T = TypeVar("T")

AGAIN_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before the second attempt and those that follow; the last for all further ones."""
UPLOADS = 4
"""Pieces at a time, each of which is in memory."""
DELETIONS = 500
"""Objects that are deleted by one request."""


class Conflict(Exception):
    """Somebody else has written the image; the text says how that is known."""


class Ended(Exception):
    """The time for another attempt is over."""


class WriteBack:
    """The runs of one overlay, by one thread.

    `sync`: bring the overlay to stable storage. `pause`: wait so many seconds; whether to go on.
    """

    def __init__(
        self,
        file: Fd,
        marks: Marks,
        reader: PiecesReader,
        pieces: PiecesMap,
        status: WriteBackStatus,
        log: logging.Logger,
        *,
        sync: Callable[[], None],
        pause: Callable[[float], bool],
    ) -> None:
        self._file = file
        self._marks = marks
        self._reader = reader
        self._store = reader.store
        self._pieces = pieces
        self._status = status
        self._log = log
        self._sync = sync
        self._pause = pause
        self._undeleted: tuple[list[str], list[int]] = [], []
        self._manifest_key = reader.folder + pieces_manifest.NAME

    def run(self) -> None:
        """One run, if there is anything to write. Raises Conflict, Ended, OSError."""
        asked = self._status.asked
        if self._marks.changed():
            self._status.say(WRITING)
            self._insist(self._check)
            self._write()
        self._status.answered = asked
        self._status.say(QUIET)

    def _check(self) -> None:
        """Look whether the image is still the one of this overlay, and tidy up."""
        manifest, _ = self._current()
        try:
            self._delete_old(manifest)
            self._undeleted = [], []
        except ObjectUnavailable as error:
            if not self._undeleted[0] and not self._undeleted[1]:
                self._log.warning("write-back: what is not needed any more stays: %s", error)
            self._undeleted = manifest.obsolete, [int(each, 16) for each in manifest.abandoned]

    def _write(self) -> None:
        run, began = new_run(), time.time()
        begun = self._begun()
        areas.write_header(self._file, self._header((run, *begun)))
        self._sync()
        numbers = self._marks.begin()
        self._sync()
        self._status.left = len(numbers)
        written = array("Q", bytes(8 * len(numbers)))

        def write(place: int) -> None:
            number = numbers[place]
            written[place] = self._insist(lambda: self._put(run, number))

        with ThreadPoolExecutor(UPLOADS) as pool:
            for start in range(0, len(numbers), UPLOADS):
                each = range(start, min(start + UPLOADS, len(numbers)))
                list(pool.map(write, each))
                self._status.left -= len(each)
        by_piece = self._insist(lambda: self._exchange(run, numbers, written))
        self._take(run, by_piece)
        self._marks.finish()
        self._status.left = 0
        self._status.pieces += len(numbers)
        self._status.runs += 1
        self._status.at = int(began)

    def _put(self, run: int, number: int) -> int:
        """A piece of the run; the run, or ZEROS if it is nothing else."""
        data, missing = self._marks.piece(number)
        start = number * self._pieces.piece
        if missing:
            # Together: they are of one object.
            first, end = missing[0][0], missing[-1][1]
            come = self._reader.read(start + first, end - first)
            for at, to in missing:
                data[at:to] = come[at - first : to - first]
        if is_zeros(data):
            return ZEROS
        self._store.put(self._reader.folder + piece_name(run, number), bytes(data))
        return run

    def _exchange(self, run: int, numbers: list[int], written: array[int]) -> array[int]:
        """Have the manifest name what was written; which run has written each piece then."""
        manifest, version = self._current()
        by_piece = manifest.by_piece()
        if manifest.number == run:
            return by_piece  # the answer was lost
        obsolete, abandoned = list(self._undeleted[0]), list(self._undeleted[1])
        for number, new in zip(numbers, written, strict=True):
            if by_piece[number] not in (ZEROS, BASE):
                obsolete.append(piece_name(by_piece[number], number))
            by_piece[number] = new
        abandoned += [each for each in self._begun() if each not in (run, manifest.number)]
        data = pieces_manifest.encoded(
            size=manifest.size,
            piece=manifest.piece,
            run=run,
            base=manifest.base,
            by_piece=by_piece,
            # The latest, if there is no end to it: those that are dropped stay for good.
            obsolete=obsolete[-len(by_piece) :],
            abandoned=abandoned[-pieces_manifest.MOST_ABANDONED :],
        )
        try:
            self._store.exchange(self._manifest_key, data, version)
        except Exchanged:
            manifest, _ = self._current()
            if manifest.number != run:
                # Of ours, of an attempt before this one that arrived late: on top of that.
                raise
        return by_piece

    def _current(self) -> tuple[Manifest, Version]:
        """The manifest that there is, which is of this overlay, or of a run of ours of which we had
        not heard. Raises Conflict.
        """
        try:
            data, version = self._store.whole(self._manifest_key, pieces_manifest.MOST_BYTES)
        except ObjectAbsent as error:
            raise Conflict(f"the image is gone: {error}") from error
        manifest = pieces_manifest.decoded(data)
        ours = manifest.number in (areas.read_base(self._file), *self._begun())
        if not ours or (manifest.size, manifest.piece) != (self._pieces.size, self._pieces.piece):
            raise Conflict(f"somebody else has written the image (run {manifest.run})")
        if manifest.number != self._pieces.run:
            # A run that somebody of ours had not time to take note of.
            areas.write_base(self._file, manifest.number)
            self._pieces.take(manifest.number, manifest.by_piece())
        return manifest, version

    def _delete_old(self, manifest: Manifest) -> None:
        """What the last run has replaced, and what those have left that came to nothing."""
        folder = self._reader.folder
        by_piece = manifest.by_piece()
        old = []
        for name in manifest.obsolete:
            run, number = (int(part, 16) for part in name.split("/"))
            if number >= len(by_piece) or by_piece[number] != run:
                old.append(folder + name)
        for start in range(0, len(old), DELETIONS):
            self._store.delete(old[start : start + DELETIONS])
        for abandoned in manifest.abandoned:
            if abandoned not in manifest.runs:
                for names in self._store.below(f"{folder}{abandoned}"):
                    self._store.delete(names)

    def _take(self, run: int, by_piece: array[int]) -> None:
        areas.write_base(self._file, run)
        areas.write_header(self._file, self._header(()))
        self._pieces.take(run, by_piece)

    def _begun(self) -> tuple[int, ...]:
        return areas.begun_runs(self._file)

    def _header(self, begun: tuple[int, ...]) -> areas.WriteBackHeader:
        return areas.WriteBackHeader(areas.boot_id(), synced=False, begun=begun)

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Its result, however often it must be tried. Raises Conflict, Ended."""
        tries = 0
        while True:
            try:
                result = attempt()
            except ObjectUnavailable as error:
                if tries == 0 or self._status.state != TRYING:
                    self._log.error("write-back: %s; trying again", error)
                self._status.say(TRYING, str(error))
                if not self._pause(AGAIN_S[min(tries, len(AGAIN_S) - 1)]):
                    raise Ended(str(error)) from error
                tries += 1
            else:
                if tries:
                    self._status.say(WRITING)
                    self._log.info("write-back: the store answers again")
                return result


def conflict(status: WriteBackStatus, log: logging.Logger, error: Conflict) -> None:
    """Say that nothing is written any more."""
    status.say(CONFLICT, str(error))
    log.error(
        "write-back stopped: %s; what the guest has written since is kept in the overlay", error
    )


def mark_synced(file: Fd) -> None:
    """All of the overlay is on stable storage, and nobody changes it any more. Raises OSError."""
    os.fdatasync(file.fileno())
    header = areas.read_header(file)
    if header is not None:
        areas.write_header(file, areas.WriteBackHeader(header.boot, True, header.begun))
        os.fdatasync(file.fileno())
