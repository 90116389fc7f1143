"""A seat whose worker the kernel does not let die stays empty, whoever asks for another."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vuproc.config_space import ConfigSpace
from vuproc.effects import EffectFailed, EnableRing
from vuproc.workers.crew import Crew
from vuproc.workers.seat import Seat
from vuproc.workers.supervise import WorkerProcess


class Immortal:
    """A worker that is stuck in the kernel."""

    pid = 17
    pidfd = None

    def wait_end(self, _timeout: float) -> bool:
        return False

    def stack(self) -> str:
        return ""

    def kill(self) -> bool:
        return False

    def exit(self, _timeout: float) -> bool:
        return False


def nobody(*_arguments: Any) -> WorkerProcess:
    raise AssertionError("another worker was started")


@pytest.mark.parametrize("end", ["bury", "vacate"])
def test_nobody_follows_a_worker_that_does_not_die(end: str) -> None:
    seat = Seat((0,), nobody, lambda _queues: 0)
    seat.occupy(cast(WorkerProcess, Immortal()))
    if end == "bury":
        seat.bury("test")
    else:
        seat.vacate()
    assert seat.worker is None and seat.barred
    seat.forgive()
    assert seat.barred


def test_a_crew_does_not_fill_such_a_seat() -> None:
    crew = Crew(
        nobody,
        [(0,)],
        ConfigSpace(lambda: b""),
        queue_size=8,
        work=lambda _queues: 0,
        replay=lambda _queues: [],
        on_broken=lambda _queue, _cause: None,
    )
    crew.seats[0].occupy(cast(WorkerProcess, Immortal()))
    crew.seats[0].bury("test")
    result = crew.perform(EnableRing(0, True))
    assert isinstance(result, EffectFailed) and "no worker can be started" in result.reason
