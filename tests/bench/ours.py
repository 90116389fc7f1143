"""Our own side: `vuproc run` with blk in one of its engines, or with a small handler in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.backends import Missing, Running, Unfit
from tests.bench.disks import (
    DiskOptions,
    Gathered,
    Nothing,
    Queued,
    Summing,
    Together,
    Verbs,
)
from tests.bench.scale_point import workers
from tests.bench.work import QUEUE_SIZE, Case, Store
from vuproc.devices.blk import BlkOptions
from vuproc.shm.request import Request
from vuproc.testing.serve import reference, serve

VERBS = "verbs"
"""Not blk: a handler of three verbs."""
PYTHON = "python"
"""blk in Python: its only engine before it had a choice."""
BATCH = "batch"
"""Nor this: a handler of batches."""
HANDLERS = VERBS, BATCH
ENGINES = "auto", "map", "sync", "io_uring", PYTHON, *HANDLERS

_FIELDS = frozenset(BlkOptions.__struct_fields__)


class Vuproc:
    """blk with the engine that `spec` names, or one of `HANDLERS`.

    spec: the engine, and perhaps options of the device that only this side has, as in
    `auto:poll=off:cpus=[0]`. options: those that all sides of ours have.
    """

    family = "vuproc"
    protocol = "vhost-user-blk"

    def __init__(self, spec: str, options: Mapping[str, Any]) -> None:
        self._engine, *more = spec.split(":")
        self.name = " ".join(["vuproc", self._engine, *more])
        self._options = {**options, **dict(map(setting, more))}

    def check(self, case: Case) -> None:
        known = DiskOptions.__struct_fields__ if self._engine in HANDLERS else _FIELDS
        if unknown := [key for key in self._options if key not in known]:
            raise Missing(f"this vuproc has no option {unknown[0]}")
        if self._engine == BATCH and case.work.sums:
            raise Unfit("this handler does no such thing")
        if self._engine in HANDLERS:
            return
        if self._engine != PYTHON and "engine" not in _FIELDS:
            raise Missing("this blk has no engine but python")
        if case.store is Store.NULL or case.work.sums:
            raise Unfit("blk does no such thing")
        if case.store is Store.DIRECT and not _direct():
            raise Missing("this blk has no option to open its image with O_DIRECT")

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        with serve({**self._device(case, image), **self._options}) as served:
            yield Running(served.socket, lambda: [served.pid, *workers(served)])

    def _device(self, case: Case, image: Path | None) -> dict[str, Any]:
        options: dict[str, Any] = {"queues": case.queues, "queue_size": QUEUE_SIZE}
        if image is not None:
            options["image"] = image
        if self._engine in HANDLERS:
            direct = {"direct": True} if case.store is Store.DIRECT else {}
            kind = _disk(case) if self._engine == VERBS else _gathering(case)
            return {"type": reference(kind), **options, **direct}
        if "engine" in _FIELDS:
            options["engine"] = self._engine
        if "locking" in _FIELDS:
            options["locking"] = "off"  # other sides have the same image open
        return {"type": "blk", **options, **(_direct() if case.store is Store.DIRECT else {})}


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON or else as text. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def engines() -> list[str]:
    """The engines that are worth measuring here."""
    return ["auto", PYTHON, VERBS] if "engine" in _FIELDS else [PYTHON, VERBS]


def _disk(case: Case) -> type[Nothing]:
    """Which of the small disks is for this."""
    if case.store is Store.NULL:
        return Nothing
    if case.work.sums:
        return Summing
    if case.store is Store.DIRECT and hasattr(Request, "finish_preadv"):
        return Queued
    return Verbs


def _gathering(case: Case) -> type[Nothing]:
    return Together if case.store is Store.NULL else Gathered


def _direct() -> dict[str, Any]:
    """The option of blk that opens its image with O_DIRECT."""
    return {"direct": True} if "direct" in _FIELDS else {}
