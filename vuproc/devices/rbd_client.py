"""The client that a worker is to a cluster: it opens the image once its rings want it.

A client that has died may have left writes on their way. So each leaves word of who it is, and
whoever follows has the cluster take nothing more of it, before it opens the image: what was not
done by then is never done, and what the guest has in flight is done anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from vuproc.devices.nbd_handshake import Export
from vuproc.devices.rbd_binding import RbdUnavailable, reason_of
from vuproc.devices.rbd_image import Cluster
from vuproc.devices.rbd_name import RbdName
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.devices.nbd_link import Loop

AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before the second attempt and those that follow; the last for all further ones."""
END_S = 2.0
"""Seconds that the end of a worker waits for the cluster."""


class Record:
    """Who the client is, in a shared file of `BYTES` that outlives it; "" after an orderly end."""

    BYTES = 512
    FENCED = "fenced"
    """Another client has had this one shut out: nobody is to follow it."""

    def __init__(self, file: Fd) -> None:
        self._file = file

    @property
    def text(self) -> str:
        """What it says."""
        return os.pread(self._file.fileno(), self.BYTES, 0).rstrip(b"\0").decode("utf-8", "replace")

    @text.setter
    def text(self, text: str) -> None:
        os.pwrite(self._file.fileno(), text.encode()[: self.BYTES].ljust(self.BYTES, b"\0"), 0)


class User(Protocol):
    """Who sends commands to the image."""

    def opened(self, image: Any) -> None:
        """It is open."""


class RbdClient:
    """In the worker's thread, but for the opening and the closing themselves."""

    def __init__(
        self,
        loop: Loop,
        name: RbdName,
        record: Record,
        export: Callable[[], Export],
        *,
        readonly: bool,
        locking: bool,
    ) -> None:
        self.image: Any = None
        self.name = name
        self._loop = loop
        self._record = record
        self._export = export
        self._readonly = readonly
        self._locking = locking and not readonly
        self._cluster: Cluster | None = None
        self._users: list[User] = []
        self._opening = False
        self._closed = False
        self._attempts = 0

    def add(self, user: User) -> None:
        """One that is told of the image from now on."""
        self._users.append(user)

    def open(self) -> None:
        """Have the image open, if it is not."""
        if self.image is None and not self._opening and not self._closed:
            self._opening = True
            after_s = AGAIN_S[min(self._attempts, len(AGAIN_S)) - 1] if self._attempts else 0.0
            self._loop.call_later(after_s, self._begin)

    def fenced(self) -> None:
        """The cluster takes nothing more of this client, and shall not of those that follow."""
        if self._record.text != Record.FENCED:
            self._record.text = Record.FENCED
            self._loop.log.error(
                "image %s: the cluster has shut this client out (blocklisted): somebody else was "
                "to have it. Start vuproc anew once that is not so any more",
                self.name,
            )

    def close(self, *, idle: bool) -> None:
        """Close the image; not with commands on their way, which whoever follows sees to."""
        self._closed = True
        image, self.image = self.image, None
        if image is None or not idle:
            return
        ending = threading.Thread(target=self._leave, args=[image], daemon=True)
        ending.start()
        ending.join(END_S)

    # In threads of their own.

    def _begin(self) -> None:
        threading.Thread(target=self._open, name="rbd", daemon=True).start()

    def _open(self) -> None:
        try:
            cluster, image = self._opened()
        except Exception as error:  # whatever it is, there is to be another attempt
            reason = reason_of(error)
            self._loop.call_soon(lambda: self._failed(reason))
        else:
            self._loop.call_soon(lambda: self._done(cluster, image))

    def _opened(self) -> tuple[Cluster, Any]:
        before = self._record.text
        if before == Record.FENCED:
            raise RbdUnavailable(_FENCED)
        cluster = Cluster(self.name)
        try:
            if before and not cluster.fence(before):
                self._loop.log.warning(
                    "image %s: the last worker's client %s could not be shut out, which this user "
                    "may not do: what it had on its way may come late",
                    self.name,
                    before,
                )
            # From here on whoever follows has this one shut out, if it dies; it has sent nothing.
            self._record.text = "" if self._readonly else cluster.address
            try:
                image = self._image_of(cluster)
            except BaseException:
                self._record.text = ""
                raise
        except BaseException:
            with suppress(Exception):
                cluster.close()
            raise
        return cluster, image

    def _image_of(self, cluster: Cluster) -> Any:
        image = cluster.open(readonly=self._readonly)
        try:
            self._look_at(cluster, image)
        except BaseException:
            with suppress(Exception):
                image.close()
            raise
        return image

    def _look_at(self, cluster: Cluster, image: Any) -> None:
        found, ours = cluster.export(image), self._export()
        if found.size < ours.size:
            raise RbdUnavailable(f"it has {found.size} bytes, and had {ours.size} at the start")
        if self._locking:
            cluster.lock(image)

    def _leave(self, image: Any) -> None:
        try:
            image.close()
            if self._cluster is not None:
                ours = self._cluster.address
                self._cluster.close()
                if self._record.text == ours:
                    self._record.text = ""
        except Exception as error:
            self._loop.log.warning("image %s is not closed: %s", self.name, reason_of(error))

    # What they say.

    def _done(self, cluster: Cluster, image: Any) -> None:
        self._opening = False
        self._cluster, self.image = cluster, image
        if self._closed:
            return
        if self._attempts:
            self._loop.log.info("image %s: open again", self.name)
        self._attempts = 0
        for user in self._users:
            user.opened(image)

    def _failed(self, reason: str) -> None:
        self._opening = False
        if self._closed:
            return
        if self._attempts == 0:
            self._loop.log.warning("image %s is not open: %s; trying again", self.name, reason)
        self._attempts += 1
        self.open()


_FENCED = "the cluster has shut this client out (blocklisted)"
