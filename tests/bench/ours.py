"""Our own side: `vuproc run` with blk in one of its engines, or with a small handler in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.backends import Missing, Running, Unfit
from tests.bench.disks import Nothing, Summing, Verbs
from tests.bench.scale_point import workers
from tests.bench.work import QUEUE_SIZE, Case, Store
from vuproc.devices.blk import BlkOptions
from vuproc.testing.serve import reference, serve

VERBS = "verbs"
"""Not blk: a handler of three verbs."""
PYTHON = "python"
"""blk in Python: its only engine before it had a choice."""
ENGINES = "auto", "sync", "io_uring", PYTHON, VERBS

_FIELDS = frozenset(BlkOptions.__struct_fields__)


class Vuproc:
    """blk with the engine of that name, or `verbs`. file: further keys of the device file."""

    family = "vuproc"
    protocol = "vhost-user-blk"

    def __init__(self, engine: str, file: Mapping[str, Any]) -> None:
        self.name = f"vuproc {engine}"
        self._engine = engine
        self._file = file

    def check(self, case: Case) -> None:
        if self._engine == VERBS:
            return
        if self._engine != PYTHON and "engine" not in _FIELDS:
            raise Missing("this blk has no engine but python")
        if case.store is Store.NULL or case.work.sums:
            raise Unfit("blk does no such thing")
        if case.store is Store.DIRECT and not _direct():
            raise Missing("this blk has no option to open its image with O_DIRECT")

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        with serve(self._device(case, image), file=self._file or None) as served:
            yield Running(served.socket, lambda: [served.pid, *workers(served)])

    def _device(self, case: Case, image: Path | None) -> dict[str, Any]:
        options: dict[str, Any] = {"queues": case.queues, "queue_size": QUEUE_SIZE}
        if image is not None:
            options["image"] = image
        if self._engine == VERBS:
            direct = {"direct": True} if case.store is Store.DIRECT else {}
            kind = Nothing if image is None else Summing if case.work.sums else Verbs
            return {"type": reference(kind), **options, **direct}
        if "engine" in _FIELDS:
            options["engine"] = self._engine
        return {"type": "blk", **options, **(_direct() if case.store is Store.DIRECT else {})}


def engines() -> list[str]:
    """The engines that are worth measuring here."""
    return ["auto", PYTHON, VERBS] if "engine" in _FIELDS else [PYTHON, VERBS]


def _direct() -> dict[str, Any]:
    """The option of blk that opens its image with O_DIRECT."""
    return {"direct": True} if "direct" in _FIELDS else {}
