"""virtio-rng, the entropy device: the system's random bytes, those of a file, or of a seed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from vuproc import shared
from vuproc.device import Device
from vuproc.errors import FileRefused
from vuproc.fd import Fd, FdKind
from vuproc.options import FilePath, Options, Size

if TYPE_CHECKING:
    from vuproc.shm.request import Request

QUEUE = 0
MOST = 64 << 10
"""Bytes of one request: a driver that wants more asks again. Linux asks for 64 at a time."""
BURST_S = 0.1
"""What is not asked for in so many seconds may be asked for later, at once."""
BLOCK = hashlib.sha512().digest_size
"""Bytes of a seed's stream that are made together."""


class RngOptions(Options, kw_only=True):
    """The options of `type: rng`. Without file and seed it gives the system's random bytes."""

    json_schema: ClassVar[Mapping[str, Any]] = {"not": {"required": ["file", "seed"]}}
    live: ClassVar[frozenset[str]] = Options.live | {"rate"}

    file: (
        Annotated[
            FilePath,
            Meta(
                description="Where the bytes come from: a device, or a regular file, which is read "
                "from its beginning to its end, and again."
            ),
        ]
        | None
    ) = None
    seed: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=(1 << 63) - 1,
                description="Give the same bytes at every start, for guests that are to boot "
                "alike. They are random for nobody who knows the seed.",
            ),
        ]
        | None
    ) = None
    rate: (
        Annotated[Size, Meta(ge=1, description="Bytes a second that the guest gets at most.")]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is one source, and that it can be read."""
        yield from super().problems()
        if self.file is not None and self.seed is not None:
            yield "seed", "file and seed exclude each other"
        if self.file is not None:
            try:
                os.close(_opened(self.file).take())
            except FileRefused as error:
                yield "file", error.reason


class _Place(ctypes.Structure):
    """How far a stream has been given away; it outlives workers."""

    _fields_: ClassVar = [("position", ctypes.c_uint64)]


class Rng(Device):
    """virtio-rng: random bytes, of the system, of a file or of a seed.

    One queue of buffers, each of which is filled whole (virtio 1.3, section 5.4).
    """

    device_id = 4
    queues = 1
    options_type = RngOptions
    options: RngOptions

    def shared_files(self) -> dict[str, Fd]:
        """The file, opened once, and how far the stream has been given away."""
        files = {self._named("place"): shared.struct_file(_Place)}
        if self.options.file is not None:
            files[self._named("source")] = _opened(self.options.file)
        return files

    def opens_nothing(self) -> bool:
        """The file is open."""
        return type(self) is Rng

    def _named(self, what: str) -> str:
        """A name that says whose stream it is: a device of another is not to go on with it."""
        return shared.named(what, self.options.file, self.options.seed)

    def setup(self, queue: int) -> None:
        """Find the place of the worker before us."""
        self._place = shared.struct(_Place, self.shared[self._named("place")])
        self._source = self.shared.get(self._named("source"))
        self._allowed = float(self._burst)
        self._counted_at = time.monotonic()
        self._waits = False
        self._length = 0
        """Bytes of a regular file."""
        if self._source is not None and self._source.kind is FdKind.FILE:
            self._length = self._source.size

    def pulls(self, queue: int) -> bool:
        """Requests stay with the driver until there are bytes for them."""
        return True

    def available(self, queue: int) -> None:
        """Fill what is there, as far as the rate allows."""
        while not self._waits:
            if not self._may_give():
                self._wait()
            elif (request := self.take(QUEUE)) is not None:
                self._fill(request)
            else:
                return

    def _fill(self, request: Request) -> None:
        """Fill it whole, and wait afterwards for what that was too much: Linux 6.1 reads no more
        once it was given less than it had asked for.
        """
        wanted = min(request.writable, MOST)
        try:
            data = self._bytes(wanted) if wanted else b""
        except OSError:
            request.release()  # it comes again, after the line in the log
            raise
        self._allowed -= len(data)
        request.write(data)
        request.finish()

    def _bytes(self, count: int) -> bytes:
        """The next bytes, which nobody is given twice: should we die before the driver has them,
        they are lost.
        """
        if self.options.seed is not None:
            return self._of_seed(count)
        source = self._source
        if source is None:
            return os.urandom(count)
        came = bytearray()
        while len(came) < count:
            position = self._place.position
            if self._length:
                data = os.pread(source.fileno(), count - len(came), position)
                self._place.position = (position + len(data)) % self._length
            else:
                data = os.read(source.fileno(), count - len(came))
            if not data:
                raise OSError(errno.ENODATA, f"{self.options.file} has come to its end")
            came += data
        return bytes(came)

    def _of_seed(self, count: int) -> bytes:
        """Block `n` of the stream is the SHA-512 of seed and `n`, 8 bytes each, little-endian."""
        position = self._place.position
        self._place.position = position + count
        seed = (self.options.seed or 0).to_bytes(8, "little")
        first, last = position // BLOCK, (position + count - 1) // BLOCK
        blocks = b"".join(
            hashlib.sha512(seed + number.to_bytes(8, "little")).digest()
            for number in range(first, last + 1)
        )
        return blocks[position % BLOCK :][:count]

    # The rate.

    @property
    def _burst(self) -> int:
        """Bytes that may be given at once, after a while without."""
        return MOST if self.options.rate is None else max(1, int(self.options.rate * BURST_S))

    def _may_give(self) -> bool:
        """Whether a request may be filled now."""
        rate = self.options.rate
        if rate is None:
            return True
        now = time.monotonic()
        self._allowed = min(self._burst, self._allowed + (now - self._counted_at) * rate)
        self._counted_at = now
        return self._allowed >= 1

    def _wait(self) -> None:
        """Until there is half a burst: not for each byte."""
        assert self.options.rate is not None
        self._waits = True
        wanted = max(1.0, self._burst / 2)
        self.call_later((wanted - self._allowed) / self.options.rate, self._go_on)

    def _go_on(self) -> None:
        self._waits = False
        self.available(QUEUE)


def _opened(path: str) -> Fd:
    """The source of the bytes, open. Raises FileRefused, of `file`."""
    try:
        found = os.stat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISCHR(found.st_mode)):
            # To open a pipe would wait for its other end.
            raise FileRefused("file", f"{path}: neither a regular file nor a device")
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            raise FileRefused("file", f"{path}: an empty file")
        return Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise FileRefused("file", f"{path}: {error.strerror}") from error
