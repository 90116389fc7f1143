"""What the options of a disk say of its image in a Ceph cluster (RBD), and what is shared of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.devices.blk_export_source import ExportSource
from vuproc.devices.blk_nbd import NbdQueue, NbdStore
from vuproc.devices.nbd_handshake import Export
from vuproc.devices.rbd_binding import RbdUnavailable, load
from vuproc.devices.rbd_client import RbdClient, Record
from vuproc.devices.rbd_image import ask
from vuproc.devices.rbd_link import RbdLink
from vuproc.devices.rbd_name import RbdName
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.sandbox.needs import Needs, existing
from vuproc.spec.blk import BlkFeature
from vuproc.spec.nbd import ExportFlag
from vuproc.spec.virtio import Feature

if TYPE_CHECKING:
    from vuproc.device import Device

OPTION = "rbd"
_CEPH = "/etc/ceph"


class RbdStore(NbdStore):
    """The disk as the commands of an export are: the library takes the same ones."""

    def __init__(self, export: Export, client: RbdClient, device: Device) -> None:
        self._client = client
        self._links: list[RbdLink] = []

        def connection(queue: int) -> NbdQueue:
            link = RbdLink(device, queue, client)
            self._links.append(link)
            return NbdQueue(link, device.call_later)

        super().__init__(export, connection)

    def close(self) -> None:
        """Leave the cluster."""
        super().close()
        self._client.close(idle=all(link.idle for link in self._links))


class RbdSource(ExportSource):
    """In the manner of `Image`. The shared files are what the cluster said of the image, and who
    the client is that has it open.
    """

    option = OPTION

    def __init__(
        self,
        text: str,
        *,
        user: str,
        conf: str,
        readonly: bool,
        locking: bool,
        block_size: int,
    ) -> None:
        self._named = text, user, conf
        key = f"{zlib.crc32(repr(self._named).encode()):08x}"
        name = f"rbd.{'ro' if readonly else 'rw'}.{key}"
        super().__init__(text, name, readonly=readonly, block_size=block_size)
        self._locking = locking
        self._client_name = f"rbd.client.{key}"
        self._follows = False

    def open(self) -> dict[str, Fd]:
        """Ask the cluster. Raises FileRefused, OSError."""
        export = self._ask()
        with shared.gathering() as files:
            memory = files[self._name] = Fd(os.memfd_create("vuproc-rbd", os.MFD_CLOEXEC))
            os.pwrite(memory.fileno(), export.pack(), 0)
            files[self._client_name] = Fd(os.memfd_create("vuproc-rbd-client", os.MFD_CLOEXEC))
        return files

    def adopt(self, left: Mapping[str, Fd]) -> bool:
        """As `Image.adopt`. The cluster may be away just now."""
        self._follows = left.keys() == {self._name, self._client_name}
        return self._follows

    def replaced(self, files: Mapping[str, Fd]) -> Iterator[tuple[str, str]]:
        """As `Image.replaced`: nothing that could be seen, but that it has another size by now.
        A master that follows another asks nobody.
        """
        if self._name in files and not self._follows:
            self._found = None
            os.pwrite(files[self._name].fileno(), self._ask().pack(), 0)
        self._follows = False
        return iter(())

    def lacking(self, files: Mapping[str, Fd]) -> int:
        """Order: answers come as they like. And zeroing, with an old library."""
        missing = int(Feature.IN_ORDER)
        if not self.export(files).can(ExportFlag.SEND_WRITE_ZEROES):
            missing |= BlkFeature.WRITE_ZEROES
        return missing

    def store(self, files: Mapping[str, Fd], device: Device) -> RbdStore:
        """What a worker serves from; the image is opened once its rings run."""
        try:
            load()  # before the sandbox
        except RbdUnavailable as error:
            raise FileRefused(OPTION, str(error)) from error
        client = RbdClient(
            device,
            self._rbd_name(),
            Record(files[self._client_name]),
            lambda: self.export(files),
            readonly=self._readonly,
            locking=self._locking,
        )
        return RbdStore(self.export(files), client, device)

    def needs(self) -> Needs:
        """The cluster, and what says how to find it."""
        conf = self._named[2]
        return Needs(network=True, readable=existing(_CEPH, *([conf] if conf else [])))

    def _rbd_name(self) -> RbdName:
        text, user, conf = self._named
        return RbdName.of(text, user=user, conf=conf)

    def _check_name(self) -> None:
        self._rbd_name()

    def _asked(self) -> tuple[str, Export]:
        name = self._rbd_name()
        try:
            return str(name), ask(name)
        except (RbdUnavailable, OSError, struct.error) as error:
            raise FileRefused(OPTION, f"{name}: {error}") from error

    def _problem(self, export: Export) -> str | None:
        problem = super()._problem(export)
        if problem is not None:
            return problem
        if export.can(ExportFlag.READ_ONLY) and not self._readonly:
            return "is a snapshot; set readonly: true to serve it"
        return None
