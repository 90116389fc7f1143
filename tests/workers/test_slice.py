"""How long a native device may go on before the worker's loop has its turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vuproc.shm.ring import SLICE_NS
from vuproc.workers.loop import Worker
from vuproc.workers.queue import ALONE_NS


@pytest.mark.parametrize(
    ("due", "watches", "later", "queues", "slice_ns"),
    [
        (None, False, False, 1, ALONE_NS),
        (1.0, False, False, 1, ALONE_NS),
        (0.004, False, False, 1, 4_000_000),
        (0.0, False, False, 1, SLICE_NS),
        (None, True, False, 1, SLICE_NS),
        (None, False, True, 1, SLICE_NS),
        (None, False, False, 2, SLICE_NS),
    ],
)
def test_it_goes_on_until_the_next_timer_unless_others_wait(
    due: float | None, watches: bool, later: bool, queues: int, slice_ns: int
) -> None:
    loop: Any = SimpleNamespace(
        _device_loop=SimpleNamespace(watches=watches, due=lambda: due),
        _queues=dict.fromkeys(range(queues)),
    )
    queue: Any = SimpleNamespace(finishes_later=later)
    assert Worker._slice(loop, queue) == slice_ns
