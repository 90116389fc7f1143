"""A disk whose helper dies at every few steps of writing back, wherever it is then."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tests.devices.dying_layers import counted
from vuproc.devices import blk_write_area, blk_write_back
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.devices.blk_write_marks import Marks
from vuproc.devices.object_store import ObjectStore, ObjectUnavailable
from vuproc.devices.pieces_map import PiecesMap
from vuproc.fd import Fd
from vuproc.pool import helper

BOUND_S = 60.0


class DyingHelper(Blk):
    """Counts steps in a file beside the overlay, so that the next helper comes further."""

    def __init__(self, options: BlkOptions) -> None:
        super().__init__(options)
        helper.RETRY_S = (0.1,)  # made in the master, which would wait longer from death to death

    def run_helper(self, ending: Fd) -> None:
        counter = os.open(f"{self.options.image}.steps", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for owner, name in (
            (ObjectStore, "put"),
            (ObjectStore, "exchange"),
            (ObjectStore, "delete"),
            (PiecesMap, "take"),
            (Marks, "_await_others"),
            (Marks, "_end"),
            (Marks, "piece"),
            (blk_write_area, "write_header"),
            (blk_write_area, "write_base"),
            (blk_write_back.WriteBack, "_sync"),
        ):
            if hasattr(owner, name):
                setattr(owner, name, counted(getattr(owner, name), counter))
        super().run_helper(ending)


class KeepingHelper(Blk):
    """Whose rights do not go as far as deletions."""

    def run_helper(self, ending: Fd) -> None:
        def refused(*_: Any) -> None:
            raise ObjectUnavailable("403 Forbidden")

        setattr(ObjectStore, "delete", refused)  # noqa: B010
        super().run_helper(ending)


class LateHelper(Blk):
    """Says by a file that the manifest is about to be exchanged, and waits for another file."""

    def run_helper(self, ending: Fd) -> None:
        exchange = ObjectStore.exchange

        def late(*arguments: Any) -> Any:
            Path(f"{self.options.image}.before").touch()
            deadline = time.monotonic() + BOUND_S
            while not Path(f"{self.options.image}.goes_on").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return exchange(*arguments)

        setattr(ObjectStore, "exchange", late)  # noqa: B010
        super().run_helper(ending)
