"""The programs that vuproc is measured against, each with how it is started at its best."""

from __future__ import annotations

from tests.bench.backends import Backend
from tests.bench.peers.crate import Crate
from tests.bench.peers.nbdkit import Nbdkit
from tests.bench.peers.storage_daemon import CONFIGURATIONS, StorageDaemon


def every() -> list[Backend]:
    """All of them in all configurations, whether they are to be had or not."""
    return [
        *(StorageDaemon(name) for name in CONFIGURATIONS),
        Crate("preadv"),
        Crate("map"),
        Nbdkit("file"),
        Nbdkit("rust"),
        Nbdkit("python"),
    ]
