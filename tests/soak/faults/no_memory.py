"""A process gets no more memory."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from tests.soak.fault import Fault
from tests.soak.lack import lacking
from tests.soak.stage import Stage
from vuproc.errors import VuprocError

LACK_S = 0.3
LEFT = 256 << 10
"""Bytes of address space that it has left."""


class NoMemory(Fault):
    """The master, its forkserver, or a worker, while a worker dies or a front-end comes."""

    name = "no memory"
    full = 60
    spares_master = False

    def strike(self, stage: Stage) -> None:
        workers = stage.workers()
        pid = stage.chance.choice((stage.status().pid, stage.forkserver(), *workers))
        if pid is None:
            return
        size = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0])
        limit = size * resource.getpagesize() + LEFT
        with lacking(stage, pid, resource.RLIMIT_AS, limit, LACK_S):
            if stage.chance.random() < 0.5:
                stage.kill(stage.chance.choice(workers))
            else:
                stage.hang_up()
                # It may be refused until there is memory again, and no longer.
                with suppress(VuprocError, OSError):
                    assert stage.connection
