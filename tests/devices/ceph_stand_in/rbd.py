"""In place of Ceph's module: images that are files, with threads that do the work.

Each call leaves a line in `calls`, beside the ceph.conf. `errors` there has the number of an error
for a kind of call ("write 28"); while there is a `hold`, nothing that comes is done.
"""

import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rados

RBD_FEATURE_EXCLUSIVE_LOCK = 4
RBD_LOCK_MODE_EXCLUSIVE = 0
LOOK_S = 0.01


class Error(Exception):
    """With the number of an error, as Ceph's has it."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class ImageNotFound(Error):
    """There is none."""


class ReadOnlyImage(Error):
    """Somebody else has its lock."""


class Completion:
    """How one call went."""

    def __init__(self, result: int) -> None:
        self._result = result

    def get_return_value(self) -> int:
        return self._result


class Image:
    """One that is open."""

    def __init__(
        self,
        ioctx: rados.Ioctx,
        name: str,
        snapshot: str | None = None,
        read_only: bool = False,
    ) -> None:
        path = ioctx.folder / (f"{name}@{snapshot}" if snapshot else name)
        if not path.exists():
            raise ImageNotFound(f"error opening image {name} at snapshot {snapshot}", 2)
        self._cluster = ioctx.cluster
        self._folder = ioctx.cluster.folder
        self._file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self._lock = path.with_name(f"{name}.lock")
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def features(self) -> int:
        return RBD_FEATURE_EXCLUSIVE_LOCK

    def lock_acquire(self, mode: int) -> None:
        owners = self.lock_get_owners()
        if owners and owners[0]["owner"] not in self._listed("blocklist"):
            raise ReadOnlyImage("error acquiring image lock", errno.EROFS)
        self._lock.write_text(self._cluster.get_addrs())

    def lock_get_owners(self) -> list[dict[str, Any]]:
        return [{"mode": 0, "owner": self._lock.read_text()}] if self._lock.exists() else []

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def close(self) -> None:
        self._calls.put(None)
        if self.lock_get_owners() and self._lock.read_text() == self._cluster.get_addrs():
            self._lock.unlink()
        self._note("close")

    def aio_read(self, offset: int, length: int, oncomplete: Callable[..., None]) -> None:
        def do() -> bytes:
            return os.pread(self._file, length, offset)

        self._begin(f"read {offset} {length}", do, oncomplete, gives=True)

    def aio_write(self, data: bytes, offset: int, oncomplete: Callable[..., None]) -> None:
        if not isinstance(data, bytes):
            raise TypeError("bytes are wanted")

        def do() -> None:
            os.pwrite(self._file, data, offset)

        self._begin(f"write {offset} {len(data)}", do, oncomplete)

    def aio_flush(self, oncomplete: Callable[..., None]) -> None:
        self._begin("flush", lambda: os.fdatasync(self._file), oncomplete)

    def aio_discard(self, offset: int, length: int, oncomplete: Callable[..., None]) -> None:
        self._begin(f"discard {offset} {length}", lambda: self._zero(offset, length), oncomplete)

    def aio_write_zeroes(
        self, offset: int, length: int, oncomplete: Callable[..., None], zero_flags: int = 0
    ) -> None:
        line = f"zero {offset} {length} {zero_flags}"
        self._begin(line, lambda: self._zero(offset, length), oncomplete)

    def _zero(self, offset: int, length: int) -> None:
        os.pwrite(self._file, bytes(length), offset)

    def _begin(
        self,
        line: str,
        do: Callable[[], bytes | None],
        oncomplete: Callable[..., None],
        gives: bool = False,
    ) -> None:
        self._note(line)

        def call() -> None:
            while (self._folder / "hold").exists():
                time.sleep(LOOK_S)
            error = self._error(line.partition(" ")[0])
            data = None if error else do()
            result = -error if error else len(data or b"")
            oncomplete(*([Completion(result), data] if gives else [Completion(result)]))

        self._calls.put(call)

    def _error(self, kind: str) -> int:
        if self._cluster.get_addrs() in self._listed("blocklist"):
            return errno.ESHUTDOWN
        listed = dict(line.split() for line in self._listed("errors"))
        return int(listed.get(kind, 0))

    def _listed(self, name: str) -> list[str]:
        path = Path(self._folder, name)
        return path.read_text().splitlines() if path.exists() else []

    def _note(self, line: str) -> None:
        with (self._folder / "calls").open("a") as out:
            out.write(f"{line}\n")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
