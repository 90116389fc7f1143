from typing import Literal, final

from typing_extensions import Buffer

from vuproc.fd import HasFileno

@final
class Request:
    """One chain of a virtqueue: what the driver gave to read, and room to write the answer to.

    The readable and the writable bytes are two streams with a cursor each, however many
    descriptors they are spread over. Every verb raises RequestFinished once the request is
    finished or its ring has stopped. Not made by callers: a ring hands it to `handle`.
    """

    @property
    def queue(self) -> int:
        """The virtqueue's number."""

    @property
    def head(self) -> int:
        """The head descriptor's index: unique among the requests in flight on this queue."""

    @property
    def readable(self) -> int:
        """Bytes left to read at the cursor."""

    @property
    def writable(self) -> int:
        """Bytes left to write at the cursor."""

    @property
    def readable_total(self) -> int:
        """All bytes which the driver gave to read."""

    @property
    def writable_total(self) -> int:
        """All bytes which the driver gave room for."""

    @property
    def written(self) -> int:
        """Bytes written so far by the verbs, each counted once: the used length by default."""

    @property
    def finished(self) -> bool:
        """True once finished, released, given to the kernel, or once the ring has stopped or
        broken.
        """

    @property
    def deferred(self) -> bool:
        """True once `defer` was called."""

    @deferred.setter
    def deferred(self, value: bool) -> None:
        """For who serves the request in a way of its own, and looks at it once the device's code
        is done.
        """

    @property
    def readable_segments(self) -> tuple[memoryview, ...]:
        """Read-only views of guest memory: the whole readable area, cursor or not.

        The driver can change what they show at any time: copy once, decide on the copy. They end
        with the request: once it is finished or released, or its ring has stopped, each use of
        them raises ValueError. Slices of them, and what was made over them as a buffer (a numpy
        array), cannot be ended: do not keep those.
        """

    @property
    def writable_segments(self) -> tuple[memoryview, ...]:
        """Writable views of guest memory, the whole area; bytes stored here are not counted.

        Give the number to `finish`. They end with the request, like `readable_segments`: do not
        store into a slice of them after that.
        """

    def read(self, n: int = -1) -> bytes:
        """Copy up to `n` bytes (-1: all that are left) and move the cursor; fewer at the end.

        Raises ValueError for -1 if more than 16 MiB are left: the length is the driver's choice.
        """

    def skip(self, n: int) -> int:
        """Move the read cursor over up to `n` bytes; return how many."""

    def write(self, data: Buffer) -> int:
        """Copy bytes at the write cursor, at most `writable`; return how many were taken."""

    def put(self, offset: int, data: Buffer) -> int:
        """Copy bytes to an absolute offset of the writable area, leaving the cursor alone.

        A negative offset counts from the end. ValueError if they do not fit; returns their number.
        """

    def preadv(self, file: int | HasFileno, offset: int, n: int = -1) -> int:
        """Read `n` bytes (-1: as many as fit) of a file into the writable area at the cursor.

        Returns how many were read and moves the cursor by that: fewer at the end of the file.
        Raises OSError if none could be read; ValueError if `n` is more than `writable`.
        """

    def pwritev(self, file: int | HasFileno, offset: int, n: int = -1) -> int:
        """Write `n` bytes (-1: all that are left) at the read cursor to a file.

        Returns how many were written and moves the cursor. Raises OSError if none could be
        written; ValueError if `n` is more than `readable`.
        """

    def finish_preadv(
        self,
        file: int | HasFileno,
        offset: int,
        n: int = -1,
        *,
        done: bytes = b"",
        buffered: int | HasFileno | None = None,
    ) -> None:
        """Read `n` bytes of a file at the cursor, store `done` as the last bytes, and complete.

        The last act of a handler: the request is not the handler's any more when this returns.
        -1: as many bytes as fit before `done`. If the worker has an io_uring with this file
        (`Device.uring_files`), the kernel reads meanwhile and the request is completed when it has,
        in any order; otherwise this blocks. `buffered`, for a file opened with O_DIRECT: the same
        without, used where the driver's memory is not aligned to 512. ValueError if it does not
        fit. OSError, and EIO at the end of the file, either from here or later: then `Device.fail`
        gets request and error, as if `handle` had raised it.
        """

    def finish_pwritev(
        self,
        file: int | HasFileno,
        offset: int,
        n: int = -1,
        *,
        done: bytes = b"",
        durable: bool = False,
        buffered: int | HasFileno | None = None,
    ) -> None:
        """Write `n` bytes (-1: all that are left) at the read cursor to a file, then as above.

        `durable`: they are on stable storage before the request is completed.
        """

    def finish_fdatasync(self, file: int | HasFileno, *, done: bytes = b"") -> None:
        """Bring what was written to the file before to stable storage, then as above."""

    def defer(self) -> None:
        """Keep the request open after `handle` returns, to be finished later."""

    def release(self) -> None:
        """Give the request back to its ring without completing it: the driver sees nothing of it.

        The object ends with it, as with `finish`. The request is handed out once more, as another
        object, when the queue runs again (`Ring.readmit`), which without a stop may be at the
        driver's next kick; at the same place as a new one, should the ring stop before; or by the
        next worker, should this one die. For buffers that a device holds until there is
        something to put there, so that its queue can be stopped. What was written to it is not
        taken back. Raises RequestFinished as any other verb.
        """

    @property
    def resubmit(self) -> Literal["run", "drop", "fail"]:
        """What becomes of the request should the worker die before it is completed; the ring's
        `resubmit`, unless it was set.
        """

    @resubmit.setter
    def resubmit(self, value: Literal["run", "drop", "fail"]) -> None:
        """Set it before the side effect that must not happen twice, or after the last one that
        might have: it is in the record when this returns. RequestFinished as any other verb,
        ValueError if it is another word.
        """

    def finish(self, written: int | None = None) -> None:
        """Complete the request; `written` is the used length (default: what the verbs wrote).

        Out of order is fine. Raises RequestFinished the second time, ValueError if `written` is
        negative or more than `writable_total`.
        """
