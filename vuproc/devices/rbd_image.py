"""An open image of a Ceph cluster, and the end of whoever had it before.

As a program, `python -m vuproc.devices.rbd_image NAME`, with an RbdName as JSON, it says what is
there. The master asks so: Ceph's library has threads of its own, and no end of patience.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

import msgspec

from vuproc import inquiries
from vuproc.devices.nbd_handshake import Export
from vuproc.devices.rbd_binding import RbdUnavailable, load, reason_of
from vuproc.devices.rbd_name import RbdName
from vuproc.inquiries import AWAY, Inquiry
from vuproc.spec.nbd import ExportFlag

CONNECT_S = 10
"""Seconds that the monitors have to answer."""
ASK_S = 20.0
"""Seconds for the program as a whole: whoever asks waits meanwhile, or does something else."""
_AWAY = (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)
FENCED_S = 3600
"""Seconds for which the cluster takes nothing more of a client that has died."""
SETTINGS = {
    # What the library holds back would die with the worker, though the guest was told that it is
    # written. What the cluster has acknowledged is on its disks.
    "rbd_cache": "false",
    "client_mount_timeout": str(CONNECT_S),
    "rados_mon_op_timeout": str(CONNECT_S),
}


class Cluster:
    """A client of a cluster, and the pool of an image. Any thread; close it."""

    def __init__(self, name: RbdName) -> None:
        """Raises RbdUnavailable."""
        self._name = name
        rados, self._rbd = load()
        conf = name.conf or rados.Rados.DEFAULT_CONF_FILES
        try:
            self._rados: Any = rados.Rados(conffile=conf, rados_id=name.user or None)
        except rados.Error as error:
            where = name.conf or "/etc/ceph/ceph.conf"
            raise RbdUnavailable(f"{where}: {reason_of(error)}") from error
        try:
            for key, value in SETTINGS.items():
                self._rados.conf_set(key, value)
            self._rados.connect()
            self._pool: Any = self._rados.open_ioctx(name.pool)
            if name.namespace:
                self._pool.set_namespace(name.namespace)
        except rados.ObjectNotFound as error:
            self._rados.shutdown()
            raise RbdUnavailable(f"no pool {name.pool}, or no key: {reason_of(error)}") from error
        except Exception as error:
            self._rados.shutdown()
            raise RbdUnavailable(reason_of(error)) from error

    @property
    def address(self) -> str:
        """By which the cluster knows this client."""
        return str(self._rados.get_addrs())

    def fence(self, address: str) -> bool:
        """Have the cluster take nothing more of another client, whatever of it is on its way.
        Whether that was ours to say. Raises RbdUnavailable.
        """
        block = getattr(self._rados, "blocklist_add", None) or self._rados.blacklist_add
        try:
            for one in address.strip("[]").split(","):
                block(one, FENCED_S)
            self._rados.wait_for_latest_osdmap()
        except Exception as error:
            if getattr(error, "errno", None) in (errno.EPERM, errno.EACCES):
                return False
            raise RbdUnavailable(f"{address} is not shut out: {reason_of(error)}") from error
        return True

    def open(self, *, readonly: bool) -> Any:
        """The image, an rbd.Image. Raises RbdUnavailable."""
        try:
            return self._rbd.Image(
                self._pool,
                self._name.image,
                snapshot=self._name.snapshot or None,
                read_only=readonly,
            )
        except Exception as error:
            raise RbdUnavailable(reason_of(error)) from error

    def lock(self, image: Any) -> None:
        """Have the image's exclusive lock, and keep it from others; nothing if it has no such
        feature. Raises RbdUnavailable.
        """
        try:
            if image.features() & self._rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
                image.lock_acquire(self._rbd.RBD_LOCK_MODE_EXCLUSIVE)
        except Exception as error:
            owners = ""
            with suppress(Exception):
                owners = " and ".join(owner["owner"] for owner in image.lock_get_owners())
            by = f" by {owners}" if owners else ""
            raise RbdUnavailable(f"it is locked{by}: {reason_of(error)}") from error

    def export(self, image: Any) -> Export:
        """What there is, in the words that a disk of commands goes by. Raises RbdUnavailable."""
        flags = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.CAN_MULTI_CONN
        flags |= ExportFlag.SEND_TRIM
        if hasattr(self._rbd.Image, "aio_write_zeroes"):  # since Ceph 16
            flags |= ExportFlag.SEND_WRITE_ZEROES
        if self._name.snapshot:
            flags |= ExportFlag.READ_ONLY
        try:
            return Export(int(image.size()), flags)
        except Exception as error:
            raise RbdUnavailable(reason_of(error)) from error

    def close(self) -> None:
        """Leave the cluster."""
        self._pool.close()
        self._rados.shutdown()


def ask(name: RbdName) -> Export:
    """What is there, from a process of its own. Raises RbdUnavailable."""
    described = msgspec.json.encode(name).decode()
    inquiry = Inquiry((sys.executable, "-P", "-m", __name__, described), ASK_S, str(name))
    answer = inquiries.ask(inquiry)
    if answer.code != 0:
        raise RbdUnavailable(inquiry.reason_of(answer))
    return Export.unpack(answer.output)


def main() -> int:
    """Say what is there, packed."""
    name = msgspec.json.decode(sys.argv[1], type=RbdName)
    try:
        cluster = Cluster(name)
        export = cluster.export(cluster.open(readonly=True))
    except RbdUnavailable as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(AWAY if _is_away(error.__cause__) else 1)
    sys.stdout.buffer.write(export.pack())
    sys.stdout.buffer.flush()
    # The library's threads have nothing to be waited for.
    os._exit(0)


def _is_away(cause: BaseException | None) -> bool:
    """Whether no monitor said anything, as far as the binding tells."""
    number = getattr(cause, "errno", None)
    return isinstance(number, int) and abs(number) in _AWAY


if __name__ == "__main__":
    sys.exit(main())
