"""virtio-fs: a directory of the host, or what fsspec can reach, as a file system of the guest."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from vuproc import shared
from vuproc.device import Device, Resubmit, Timer
from vuproc.devices import fs_host, fs_names, fs_reading, fs_writing
from vuproc.devices.fs_answers import Validity
from vuproc.devices.fs_directory import IDLE_S, Directory
from vuproc.devices.fs_native import NativeFs
from vuproc.devices.fs_nodes import MOST_NODES, Nodes, nodes_file
from vuproc.devices.fs_parked import LANES, Parked, lane_files
from vuproc.devices.fs_records import Records, records_file
from vuproc.devices.fs_session import Session, Tree
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.options import FilePath, Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.fuse import CONFIG, HIPRIO, TAG_BYTES

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_REQUEST_QUEUES = 64
MOST_CACHE_S = 86400
LAYOUT = 1
"""Version of what is in the shared files."""


POWERS = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "MKNOD",
    "SETFCAP",
    "SYS_RESOURCE",
)
"""Capabilities of a worker that writes for the guest, whose files have owners and modes."""


class FsOptions(Options, kw_only=True):
    """The options of `type: fs`. One of directory and url is needed."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "oneOf": [{"required": ["directory"]}, {"required": ["url"]}]
    }
    live: ClassVar[frozenset[str]] = Options.live | {"cache"}
    superseded: ClassVar[Mapping[str, str]] = {
        "queues": "request_queues says how many queues this device has, less one"
    }

    tag: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=TAG_BYTES,
            pattern=r'^[^\x00-\x1f"]*$',
            description="What the guest mounts it by, 1 to 36 bytes. (QEMU has a tag of its own.)",
        ),
    ]
    directory: Annotated[FilePath, Meta(description="A directory of the host.")] | None = None
    url: (
        Annotated[
            str,
            Meta(
                min_length=1,
                description="What fsspec has at this URL, to be read: zip://::/srv/tree.zip, "
                "tar://::/srv/tree.tar, s3://bucket/folder. Needs fsspec (pip install "
                "'vuproc[fs]') and what that needs for the URL.",
            ),
        ]
        | None
    ) = None
    readonly: Annotated[
        bool, Meta(description="Refuse to change anything. A url is never changed.")
    ] = True
    request_queues: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_REQUEST_QUEUES,
            description="Queues for requests, a worker process each. Linux 6.1 uses one of them.",
        ),
    ] = 1
    cache: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_CACHE_S,
            description="Seconds for which the guest may believe names and attributes without "
            "asking again.",
        ),
    ] = 1.0
    xattrs: Annotated[
        bool,
        Meta(
            description="Let the guest have the extended attributes user.* of a directory's files. "
            "Linux then asks for one before each write."
        ),
    ] = False
    nodes: Annotated[
        int,
        Meta(
            ge=16,
            le=MOST_NODES,
            description="Files and directories that the guest may know at the same time, 330 bytes "
            "of memory each; beyond them it gets ENFILE.",
        ),
    ] = 1 << 18

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is one thing to share, and that it can be had."""
        yield from super().problems()
        if len(self.tag.encode()) > TAG_BYTES:
            yield "tag", f"more than {TAG_BYTES} bytes"
        if (self.directory is None) == (self.url is None):
            yield "", "one of directory and url is needed, and not both"
        if self.directory is not None:
            try:
                with _opened(self.directory) as root:
                    fs_host.open_beneath(root, b".").close()
            except FileRefused as error:
                yield "directory", error.reason
            except OSError as error:
                how = "Linux has it since 5.6; RestrictSUIDSGID=yes of a service takes it away"
                yield "directory", f"openat2(2): {error.strerror} ({how})"
        if self.url is not None:
            yield from self._problems_of_url(self.url)
        if self.url is not None and not self.readonly:
            yield "readonly", "a url is only read"

    def _problems_of_url(self, url: str) -> Iterator[tuple[str, str]]:
        if importlib.util.find_spec("fsspec") is None:
            yield "url", "needs fsspec, which is not installed: pip install 'vuproc[fs]'"
            return
        from vuproc.devices import fs_question  # no worker asks

        try:
            why = fs_question.why_not_had(url)
        except OSError as error:
            why = f"fsspec cannot be asked: {error}"
        if why is not None:
            yield "url", f"{url}: {why}"


class Fs(Device):
    """virtio-fs: a directory of the host, or what fsspec can reach.

    Queue 0 is the driver's way to say what it has forgotten; on the others are requests, those of
    FUSE (virtio 1.3, section 5.11).
    """

    device_id = 26
    options_type = FsOptions
    options: FsOptions
    resubmit: ClassVar[Mapping[int, Resubmit]] = {HIPRIO: "drop"}
    _served: NativeFs | None = None

    # What the master asks.

    def num_queues(self) -> int:
        """One for what is forgotten, and those for requests."""
        return 1 + self.options.request_queues

    def config_space(self) -> bytes:
        """virtio 1.3, 5.11.4: the tag, and how many queues there are for requests."""
        return CONFIG.pack(
            tag=self.options.tag.encode(), num_request_queues=self.options.request_queues
        )

    def sandbox_needs(self) -> Needs:
        """The directory, with a file server's powers over other users' files; or the network."""
        directory = self.options.directory
        if directory is None:
            return self.needs.with_more(
                Needs(readable=_local(self.options.url or ""), network=True)
            )
        if self.options.readonly:
            powers = Needs(readable=(directory,), capabilities=("DAC_READ_SEARCH",))
        else:
            powers = Needs(files=(directory,), capabilities=POWERS)
        return self.needs.with_more(powers)

    def shared_files(self) -> dict[str, Fd]:
        """What outlives a worker: the nodes, what was begun, the directory and its open files."""
        with shared.gathering() as files:
            if self.options.directory is not None:
                files[self._named("root")] = _opened(self.options.directory)
                files |= {self._named(name): file for name, file in lane_files().items()}
            files[self._named("nodes")] = nodes_file(self.options.nodes)
            files[self._named("records")] = records_file(self.num_queues())
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Yes to the nodes of what is shared now: sockets cannot be told by their size."""
        names = ["nodes", "records"]
        if self.options.directory is not None:
            names += ["root", *(f"{end}-{lane}" for end in ("to", "out") for lane in range(LANES))]
        return left.keys() == set(map(self._named, names))

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """Tell if another directory has the path by now."""
        if self.options.directory is None:
            return
        ours = os.fstat(self.shared[self._named("root")].fileno())
        with _opened(self.options.directory) as there:
            if not os.path.samestat(ours, os.fstat(there.fileno())):
                yield "directory", "another directory is there now"

    def _named(self, what: str) -> str:
        """A name that says what is shared: a device of something else is not to go on with it."""
        of = self.options
        return shared.named(what, LAYOUT, of.directory, of.url, of.nodes, of.request_queues)

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Find what the worker before us has left."""
        nodes = Nodes(self.shared[self._named("nodes")], self.options.nodes)
        session = nodes.session  # once: another worker may begin a new one now
        records = Records(self.shared[self._named("records")], queue, self.num_queues(), session)
        # The files of one session, whichever of a worker's queues their requests come by.
        self._served = self._native() if self._served is None else self._served
        self._session = Session(self._tree(nodes), nodes, records, session, self._served)
        self._timer: Timer | None = None

    def _native(self) -> NativeFs | None:
        if self.options.directory is None or type(self).handle is not Fs.handle:
            return None
        return NativeFs(writable=not self.options.readonly)

    def native(self, queue: int) -> NativeFs | None:
        """READ and WRITE of a directory's files in native code, which leaves the rest to `handle`;
        None if a subclass wants all of it.
        """
        return None if queue == HIPRIO else self._served

    def _tree(self, nodes: Nodes) -> Tree:
        valid = Validity.of(self.options.cache)
        if self.options.url is not None:
            from vuproc.devices.fs_fsspec import FsspecTree

            return FsspecTree(self.options.url, nodes, valid)
        os.umask(0)  # the guest applies its own
        lanes = [
            (self.shared[self._named(f"to-{lane}")], self.shared[self._named(f"out-{lane}")])
            for lane in range(LANES)
        ]
        return Directory(
            self.shared[self._named("root")],
            nodes,
            Parked(lanes, nodes),
            fs_reading.ARMS | fs_names.ARMS | fs_writing.ARMS,
            writable=not self.options.readonly,
            xattrs=self.options.xattrs,
            valid=valid,
            served=self._served,
        )

    def teardown(self) -> None:
        """Let go of it all."""
        self._session.close()

    def handle(self, request: Request) -> None:
        """Serve one request of FUSE."""
        self._session.serve(request)
        if self._timer is None:
            self._timer = self.call_later(IDLE_S, self._tick)

    def fail(self, request: Request, error: BaseException) -> None:
        """EIO."""
        self._session.fail(request)

    def _tick(self) -> None:
        again = self._session.tick()
        self._timer = self.call_later(IDLE_S, self._tick) if again else None


def _opened(path: str) -> Fd:
    """The directory, open as a place to begin at. Raises FileRefused, of `directory`."""
    try:
        return Fd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise FileRefused("directory", f"{path}: {error.strerror}") from error


def _local(url: str) -> tuple[str, ...]:
    """The paths of this machine that a URL of fsspec names, such as zip://::/srv/tree.zip."""
    parts = [part.removeprefix("file://").removeprefix("local://") for part in url.split("::")]
    return tuple(part for part in parts if part.startswith("/"))
