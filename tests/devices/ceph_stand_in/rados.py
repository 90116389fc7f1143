"""In place of Ceph's module: a cluster that is a folder, the one that the ceph.conf lies in.

What lies beside the ceph.conf says how it misbehaves: `refuse` (the text of an error), `hang` (no
answer while it is there), `not-yours` (a user who may not shut others out), and `blocklist`, the
addresses of those of whom nothing is taken any more.
"""

import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

_NUMBERS = itertools.count(1)


class Error(Exception):
    """With the number of an error, as Ceph's has it."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class ObjectNotFound(Error):
    """There is none."""


class Rados:
    """A client."""

    DEFAULT_CONF_FILES = -2

    def __init__(self, *, conffile: Any, rados_id: str | None) -> None:
        if not isinstance(conffile, str) or not os.path.exists(conffile):
            raise ObjectNotFound("error calling conf_read_file", 2)
        self.folder = Path(conffile).parent
        self.settings: dict[str, str] = {}
        self._user = rados_id

    def conf_set(self, key: str, value: str) -> None:
        self.settings[key] = value

    def connect(self) -> None:
        if self.settings.get("rbd_cache") != "false":
            raise Error("a cache would die with its worker")
        if self._user not in (None, "admin"):
            raise ObjectNotFound("error connecting to the cluster", 13)
        while (self.folder / "hang").exists():
            time.sleep(0.01)
        refuse = self.folder / "refuse"
        if refuse.exists():
            raise Error(refuse.read_text())
        self._address = f"127.0.0.1:0/{os.getpid()}{next(_NUMBERS):04}"

    def get_addrs(self) -> str:
        return self._address

    def blocklist_add(self, address: str, expire_seconds: int = 0) -> None:
        if (self.folder / "not-yours").exists():
            raise Error("error blocklisting client", errno.EACCES)
        with (self.folder / "blocklist").open("a") as out:
            out.write(f"{address}\n")

    def wait_for_latest_osdmap(self) -> None:
        pass

    def open_ioctx(self, pool: str) -> "Ioctx":
        if not (self.folder / pool).is_dir():
            raise ObjectNotFound(f"error opening pool '{pool}'", 2)
        return Ioctx(self, self.folder / pool)

    def shutdown(self) -> None:
        pass


class Ioctx:
    """A pool."""

    def __init__(self, cluster: Rados, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def set_namespace(self, name: str) -> None:
        self.folder /= name

    def close(self) -> None:
        pass
