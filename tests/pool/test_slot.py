"""A slot whose worker the kernel does not let die stays empty, whoever asks for another."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import WorkerProcess
from vuproc.pool.slot import WorkerSlot
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.effects import EffectFailed, EnableRing


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


@pytest.mark.parametrize("end", ["reap", "release"])
def test_nobody_follows_a_worker_that_does_not_die(end: str) -> None:
    slot = WorkerSlot((0,), nobody, lambda _queues: 0)
    slot.assign(cast(WorkerProcess, Immortal()))
    if end == "reap":
        slot.reap("test")
    else:
        slot.release()
    assert slot.worker is None and slot.unkillable
    slot.close_breaker()
    assert slot.unkillable


def test_a_pool_does_not_fill_such_a_slot() -> None:
    pool = WorkerPool(
        nobody,
        [(0,)],
        ConfigSpace(lambda: b""),
        queue_size=8,
        work=lambda _queues: 0,
    )
    pool.slots.of(0).assign(cast(WorkerProcess, Immortal()))
    pool.slots.of(0).reap("test")
    result = pool.perform(EnableRing(0, True))
    assert isinstance(result, EffectFailed) and "no worker can be started" in result.reason
