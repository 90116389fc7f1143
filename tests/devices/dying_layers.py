"""A disk in two layers whose workers die at every few steps of a write, wherever they are then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from vuproc.devices.blk import Blk
from vuproc.devices.blk_overlay import Overlay
from vuproc.devices.blk_overlay_table import ChunkTable

EVERY = 13
"""Steps from one death to the next: more than a request has, or it would be held to be poison; and
no multiple of those, so that each step has its turn."""


class DyingLayers(Blk):
    """Counts steps in a file beside the overlay, so that the next worker comes further than the one
    before.
    """

    def setup(self, queue: int) -> None:
        super().setup(queue)
        counter = os.open(f"{self.options.image}.steps", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for owner, name in (
            (Overlay, "_copy_up"),
            (Overlay, "_sync"),
            (ChunkTable, "adding"),
            (ChunkTable, "add"),
            (ChunkTable, "_bits"),
        ):
            setattr(owner, name, counted(getattr(owner, name), counter))


def counted(step: Callable[..., Any], counter: int) -> Callable[..., Any]:
    """The step, with death before or after it when it is time."""

    def counting(*arguments: Any) -> Any:
        die_at_last(counter)
        result = step(*arguments)
        die_at_last(counter)
        return result

    return counting


def die_at_last(counter: int) -> None:
    os.write(counter, b".")
    if os.fstat(counter).st_size % EVERY == 0:
        os.kill(os.getpid(), signal.SIGKILL)
