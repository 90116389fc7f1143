"""A process may open no more files."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from tests.soak.fault import Fault
from tests.soak.lack import lacking
from tests.soak.stage import Stage
from vuproc.errors import VuprocError

LACK_S = 0.3


class NoDescriptors(Fault):
    """The master, its forkserver or the keeper, while a worker dies or a front-end comes."""

    name = "no descriptors"
    full = 60
    spares_master = False

    def strike(self, stage: Stage) -> None:
        pid = stage.chance.choice((stage.status().pid, stage.forkserver(), stage.keeper))
        if pid is None:
            return
        highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        victims = stage.workers()
        with lacking(stage, pid, resource.RLIMIT_NOFILE, highest + 1, LACK_S):
            if stage.chance.random() < 0.5:
                stage.kill(stage.chance.choice(victims))
            else:
                stage.hang_up()
                # It may be refused until there are descriptors again, and no longer.
                with suppress(VuprocError, OSError):
                    assert stage.connection
