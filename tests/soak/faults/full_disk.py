"""The file system of the image has no byte left: writes fail, and nothing else does."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage

MEANWHILE = 32
"""Requests while it is full."""


class FullDisk(Fault):
    """What was given up by a write of zeroes cannot be had again, until there is room."""

    name = "full disk"
    full = 100

    @classmethod
    def obstacle(cls, stage: Stage) -> str | None:
        return stage.room.without

    def strike(self, stage: Stage) -> None:
        stage.writes_may_fail = True
        with stage.room.full(stage.room.disk):
            stage.progress(MEANWHILE)
            if stage.chance.random() < 0.3:
                stage.kill(stage.chance.choice(stage.workers()))
                stage.progress()
        # What was in flight while it was full is done by then.
        stage.progress()
        stage.writes_may_fail = False
