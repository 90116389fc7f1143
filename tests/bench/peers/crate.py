"""Our own small virtio-blk in Rust on the crate `vhost-user-backend`, in peers/rust."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.backends import Running, Unfit, child
from tests.bench.peers import cargo
from tests.bench.work import Case, Store

_SOURCES = Path(__file__).with_name("rust")


class Crate:
    """`preadv` by system calls, `map` by copying from and to a mapping of the image."""

    protocol = "vhost-user-blk"

    def __init__(self, way: str) -> None:
        self.name = self.family = f"rust {way}"
        self._way = way

    def check(self, case: Case) -> None:
        if self._way == "map" and case.store in (Store.DIRECT, Store.NULL):
            raise Unfit("a mapping is neither")
        program()

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        path = directory / f"rust-{self._way}.sock"
        flags = {
            "map": self._way == "map",
            "direct": case.store is Store.DIRECT,
            "sum": case.work.sums,
        }
        chosen = [flag for flag, wanted in flags.items() if wanted]
        command = [program(), path, image or "null", str(case.queues), *chosen]
        with child(command, path) as running:
            yield running


def program() -> Path:
    """The peer, built if it is not there. Raises Missing."""
    return cargo.built(_SOURCES, "blk-peer")
