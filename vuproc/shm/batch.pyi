from collections.abc import Iterable, Iterator, Sequence
from typing import final, overload

from typing_extensions import Buffer

from vuproc.fd import HasFileno
from vuproc.shm.request import Request

@final
class Batch:
    """Requests of one queue that have come together, in their order: a sequence of them.

    Its verbs are those of `Request`, for all of them in one call. A number that differs from
    request to request is given as one for each: a buffer of integers (`array("q")`, a memoryview, a
    numpy array), or a sequence. What does not fit one of them is a ValueError that names its head,
    and then nothing has been done; RequestFinished likewise if one is finished already.

    Not made by callers: a ring hands it to `handle_batch`, and `where`, `select` and slices make
    smaller ones.
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    @overload
    def __getitem__(self, which: int) -> Request: ...
    @overload
    def __getitem__(self, which: slice) -> Batch: ...
    def select(self, indexes: Iterable[int]) -> Batch:
        """Those at these places, in this order, each once (ValueError). IndexError as of a list."""

    def where(self, mask: Buffer | Sequence[object], value: int | None = None) -> Batch:
        """Those for which `mask`, integers or a sequence, has something true; `value`: has that."""

    @property
    def readable(self) -> memoryview:
        """Bytes left to read at the cursor of each, format "Q"."""

    @property
    def writable(self) -> memoryview:
        """Bytes left to write at the cursor of each, format "Q"."""

    def frames(self, skip: int = 0) -> list[memoryview]:
        """What each gives to read, from byte `skip` on, wherever its cursor is.

        Views of guest memory where it lies in one piece, and copies elsewhere. The views end with
        their requests, as `Request.readable_segments` do.
        """

    def column(self, offset: int, format: str) -> memoryview:
        """The integer at byte `offset` of what each gives to read, wherever its cursor is.

        format: "B", "H", "I" or "Q", as `struct` has them, in this machine's order, which is
        virtio's. 0 for a request that has no such byte. Memory may have changed at the next look:
        read each field once.
        """

    def skip(self, n: int) -> None:
        """Move the read cursor of each over up to `n` bytes."""

    def read(self, n: int) -> memoryview:
        """Copy the next `n` bytes of each, one after the other, and move the cursors.

        A request that has fewer is filled up with zeros: `readable` tells before. At most 16 MiB in
        all (ValueError).
        """

    def write(self, data: Buffer) -> None:
        """Copy a row of `data` to the write cursor of each: len(data) / len(batch) bytes."""

    def put(self, offset: int, data: Buffer) -> None:
        """Copy the same bytes to an absolute offset of the writable area of each, a negative one
        from its end. Cursors stay.
        """

    def put_rows(self, offset: int, data: Buffer) -> None:
        """Copy a row of `data` to an absolute offset of each, as `put`."""

    def preadv(
        self,
        file: int | HasFileno,
        offsets: int | Buffer | Sequence[int],
        lengths: int | Buffer | Sequence[int] | None = None,
        *,
        unit: int = 1,
        spare: int = 0,
        within: int = ...,
    ) -> memoryview:
        """Read a file to the write cursor of each, one after the other.

        offsets: in units of `unit` bytes. lengths: in bytes; None: as many as fit. The last `spare`
        bytes of each are left alone. within: the bytes that the file is to have.
        The bytes moved for each, fewer at the end of the file, or -errno if none were; -EINVAL for
        one that would go beyond `within`. Format "q".
        """

    def pwritev(
        self,
        file: int | HasFileno,
        offsets: int | Buffer | Sequence[int],
        lengths: int | Buffer | Sequence[int] | None = None,
        *,
        unit: int = 1,
        spare: int = 0,
        within: int = ...,
    ) -> memoryview:
        """Write what each has at its read cursor to a file; all else as of `preadv`."""

    def finish(self, written: int | Buffer | Sequence[int] | None = None) -> None:
        """Complete all of them; `written` is the used length of each (default: what the verbs
        wrote). What a handler leaves open and does not defer is finished so when it returns.
        """
