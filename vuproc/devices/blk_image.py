"""The image of a disk: a file that is opened once, in the master, and passed on from there.

Workers, and whoever follows a master, get its descriptors. So all queues serve the same file over
every death, whatever lies at its path meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping

from vuproc import texts
from vuproc.devices.blk_storage import Storage, check_direct, image_size, open_size
from vuproc.devices.image_lock import (
    READER,
    WRITER,
    ImageLocked,
    LocksUnavailable,
    check,
    lock,
    lock_within,
    unlock,
)
from vuproc.errors import FileRefused
from vuproc.fd import Fd

log = logging.getLogger("vuproc.device")

LOCK_PATIENCE_S = 2.0
"""Seconds that a start waits for another's lock: what a killed program had begun in io_uring holds
its files for a moment longer than it lives."""

# linux/fs.h: _IO(0x12, 94), giving an int.
_BLKROGET = 0x125E
_IMAGE = "image."
"""Before the names of the descriptors that hold the locks."""
_FORMATS = {
    b"QFI\xfb": "QCOW2",
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
}
"""How images begin that are not raw."""
_FREE_IT = "end that program, or set locking: off if both are to have it"


class Image:
    """What the options of a disk say of its image. Nothing is open in here.

    `files` and the like are the shared files of the device by name. The names say which image it
    is and how it was opened: those of other options are others. `option` is the one that names it.
    """

    def __init__(
        self,
        path: str,
        *,
        readonly: bool,
        direct: bool = False,
        locking: bool,
        option: str = "image",
    ) -> None:
        self.path = path
        self.option = option
        self._readonly = readonly
        self._locking = locking
        self._claim = READER if readonly else WRITER
        key = f"{'ro' if readonly else 'rw'}.{zlib.crc32(os.fsencode(path)):08x}"
        self._name = f"{_IMAGE}{key}"
        self._direct_name = f"direct.{key}" if direct else None

    strict = False
    """Whether an overlay over it is refused, and not only warned of, once it has changed."""

    def problems(self, block_size: int) -> Iterator[tuple[str, str]]:
        """What is wrong with the file at the path, as (option, message): as `open`, without locks.

        Locks are for the start, since a device that is checked may be running.
        """
        try:
            size = image_size(self.path)
        except OSError as error:
            yield self.option, f"{self.path}: {reason_of(error)}"
            return
        if size == 0:
            yield self.option, f"{self.path} is empty"
        elif size % block_size:
            yield self.option, f"{self.path}: {size} bytes are not a multiple of {block_size}"
        try:
            self._open().close()
        except FileRefused as refused:
            yield refused.option, refused.reason
            return
        if self._direct_name is not None and size >= block_size:
            problem = check_direct(self.path, block_size)
            if problem is not None:
                yield "direct", f"{self.path}: {problem}"

    def open(self) -> dict[str, Fd]:
        """Open and lock what lies at the path. Raises FileRefused."""
        fd = self._open()
        try:
            self._lock(fd)
            self._look_at(fd)
            files = {self._name: fd}
            if self._direct_name is not None:
                files[self._direct_name] = self._past_the_cache(fd)
            return files
        except BaseException:
            fd.close()
            raise

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """Whether the files of a predecessor are this image; their locks are as these options say.

        If they are not, they are locked no longer: what is opened instead may be the same file.
        """
        if left.keys() != self.names:
            for fd in left.values():
                unlock(fd)
            return False
        fd = left[self._name]
        if not self._locking:
            unlock(fd)
            return True
        try:
            # What our predecessor held stays: another may be looking at the locks just now.
            lock(fd, self._claim, keep=True)
        except (ImageLocked, LocksUnavailable, OSError) as error:
            # A guest has it already, so that it is better served than not.
            log.error("image %s: %s; it is served on all the same", self.path, error)
        return True

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Device.replaced_files`; what is at the path can be had, or FileRefused is raised."""
        try:
            there = _identity(os.stat(self.path))
        except OSError as error:
            yield self.option, f"{self.path}: {reason_of(error)}"
            return
        ours = {_identity(os.fstat(fd.fileno())): fd for fd in _locked(files)}
        if there in ours:
            self._check_lock(ours[there])
            return
        with self._open() as fd:
            self._check_lock(fd)
        if self._name in files:
            yield self.option, f"another file is at {self.path} now"

    def size(self, files: Mapping[str, Fd]) -> int:
        """Bytes of the image: of the open one, or of what is at the path if none is. OSError."""
        fd = files.get(self._name)
        return image_size(self.path) if fd is None else open_size(fd.fileno())

    def changed(self, files: Mapping[str, Fd]) -> int:
        """When the open image was changed last, in ns; 0 for a block device, whose node says
        nothing of its content.
        """
        status = os.fstat(self.file(files).fileno())
        return max(0, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else 0

    def storage(self, files: Mapping[str, Fd]) -> Storage:
        """What a worker serves from: duplicates of the descriptors in `files`."""
        missing = self.names - files.keys()
        if missing:
            raise FileRefused(self.option, f"no {sorted(missing)[0]} among the shared files")
        fd = files[self._name].dup()
        if self._direct_name is None:
            return Storage(fd)
        return Storage(files[self._direct_name].dup(), fd)

    def file(self, files: Mapping[str, Fd]) -> Fd:
        """The open image itself, of the shared files."""
        return files[self._name]

    @property
    def names(self) -> set[str]:
        """Of the shared files that are its own."""
        return {self._name} | ({self._direct_name} if self._direct_name is not None else set())

    def _open(self) -> Fd:
        access = os.O_RDONLY if self._readonly else os.O_RDWR
        try:
            fd = Fd(os.open(self.path, access | os.O_CLOEXEC))
        except OSError as error:
            raise FileRefused(self.option, f"{self.path} {self._unopened(error)}") from error
        if not self._readonly and _is_read_only_device(fd):
            fd.close()
            raise FileRefused(self.option, f"{self.path} is a read-only block device; {_SERVE_IT}")
        return fd

    def _unopened(self, error: OSError) -> str:
        if self._readonly or not os.access(self.path, os.R_OK, effective_ids=True):
            return f"is not readable: {reason_of(error)}"
        return f"is not writable: {reason_of(error)}; {_SERVE_IT}"

    def _past_the_cache(self, fd: Fd) -> Fd:
        # By the open file: what is at the path may be another by now.
        access = os.O_RDONLY if self._readonly else os.O_RDWR
        flags = access | os.O_DIRECT | os.O_CLOEXEC
        try:
            return Fd(os.open(f"/proc/self/fd/{fd.fileno()}", flags))
        except OSError as error:
            reason = f"{self.path} cannot be opened with O_DIRECT: {reason_of(error)}"
            raise FileRefused("direct", reason) from error

    def _lock(self, fd: Fd) -> None:
        """Lock a file that was just opened. Raises FileRefused."""
        if not self._locking:
            return
        try:
            lock(fd, self._claim)
        except ImageLocked as locked:
            patience = texts.seconds(LOCK_PATIENCE_S)
            log.info("image %s: %s; waiting %s for its end", self.path, locked, patience)
            self._lock_within(fd, LOCK_PATIENCE_S)
        except LocksUnavailable as unavailable:
            log.warning(
                "image %s: no locks here (%s): nobody else is kept from it", self.path, unavailable
            )

    def _lock_within(self, fd: Fd, patience_s: float) -> None:
        try:
            lock_within(fd, self._claim, patience_s)
        except ImageLocked as locked:
            raise self._refusal(locked) from locked

    def _look_at(self, fd: Fd) -> None:
        """Warn of a file in another format. No more: a guest may write what it likes there."""
        try:
            begin = os.pread(fd.fileno(), max(map(len, _FORMATS)), 0)
        except OSError:
            return  # a bad block is for the guest that reads it
        for magic, name in _FORMATS.items():
            if begin.startswith(magic):
                log.warning(
                    "image %s begins as a %s file does, and is served byte for byte as it is; "
                    "qemu-img convert -O raw makes a disk of one",
                    self.path,
                    name,
                )

    def _check_lock(self, fd: Fd) -> None:
        if not self._locking:
            return
        try:
            check(fd, self._claim)
        except ImageLocked as locked:
            raise self._refusal(locked) from locked
        except LocksUnavailable:
            pass

    def _refusal(self, locked: ImageLocked) -> FileRefused:
        return FileRefused(self.option, f"{self.path}: {locked} (its lock is held); {_FREE_IT}")


_SERVE_IT = "set readonly: true to serve it all the same"


def _is_read_only_device(fd: Fd) -> bool:
    """Whether it is a block device that takes no writes, which the kernel does not say at open."""
    if not stat.S_ISBLK(os.fstat(fd.fileno()).st_mode):
        return False
    answer = fcntl.ioctl(fd.fileno(), _BLKROGET, bytes(struct.calcsize("@i")))
    return any(answer)


def _locked(files: Mapping[str, Fd]) -> list[Fd]:
    return [fd for name, fd in files.items() if name.startswith(_IMAGE)]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Equal for two names of one file, or of one block device."""
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)
    return status.st_dev, status.st_ino


def reason_of(error: OSError) -> str:
    """What the kernel says, for the end of a sentence."""
    return (error.strerror or "not accessible").lower()
