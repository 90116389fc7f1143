"""qemu-storage-daemon's vhost-user-blk export: the C daemon that people use."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.backends import Missing, Running, Unfit, child
from tests.bench.work import Case, Store


@dataclass(frozen=True, slots=True)
class _Configuration:
    """How requests reach the file; how long its thread looks for more before it sleeps (ns)."""

    aio: str
    poll_max_ns: int | None = None
    """None leaves QEMU's default."""


CONFIGURATIONS = {
    "threads": _Configuration("threads"),
    "threads-nopoll": _Configuration("threads", 0),
    "io_uring": _Configuration("io_uring"),
    "io_uring-nopoll": _Configuration("io_uring", 0),
    "native": _Configuration("native"),
    "native-nopoll": _Configuration("native", 0),
}
"""`native` is libaio, for O_DIRECT only. An export has one thread (in QEMU 7.2)."""


class StorageDaemon:
    """One configuration of it."""

    family = "storage-daemon"
    protocol = "vhost-user-blk"

    def __init__(self, configuration: str) -> None:
        self.name = f"storage-daemon {configuration}"
        self._configuration = CONFIGURATIONS[configuration]

    def check(self, case: Case) -> None:
        if shutil.which("qemu-storage-daemon") is None:
            raise Missing("there is no qemu-storage-daemon here")
        if case.work.sums:
            raise Unfit("it reckons no checksums")
        if self._configuration.aio == "native" and case.store is not Store.DIRECT:
            raise Unfit("libaio is for O_DIRECT")
        if case.store is Store.NULL and self._configuration.aio != "threads":
            raise Unfit("a null device has no way to its file")

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        path = directory / "storage-daemon.sock"
        if image is None:
            node = f"driver=null-co,node-name=disk,size={case.span},read-zeroes=off"
        else:
            # Raw access to a file which other sides have open too.
            direct = "on" if case.store is Store.DIRECT else "off"
            node = (
                f"driver=file,node-name=disk,filename={image},aio={self._configuration.aio},"
                f"cache.direct={direct},locking=off"
            )
        polling = self._configuration.poll_max_ns
        thread = "iothread,id=io" + ("" if polling is None else f",poll-max-ns={polling}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # It takes a socket that listens already, so there is no start to wait for.
            listener.bind(str(path))
            listener.listen(1)
            export = (
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,"
                f"addr.type=fd,addr.str={listener.fileno()},num-queues={case.queues}"
            )
            command = [
                "qemu-storage-daemon",
                *("--object", thread),
                *("--blockdev", node),
                *("--export", export),
            ]
            with child(command, path, [listener.fileno()]) as running:
                yield running
