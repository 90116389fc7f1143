"""Clocks jump: the wall clock either way, all of them forward as after a suspended host."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage

WALL_S = 10 * 365 * 86400.0
MONOTONIC_S = (0.5, 5.0, 100.0)


class ClockJump(Fault):
    """As the device's processes see it; the machine's clocks are left alone."""

    name = "clock jump"
    full = 200

    @classmethod
    def obstacle(cls, stage: Stage) -> str | None:
        return stage.clock.without

    def strike(self, stage: Stage) -> None:
        if stage.chance.random() < 0.5:
            stage.clock.set_wall(stage.chance.uniform(-WALL_S, WALL_S))
        else:
            stage.clock.advance(stage.chance.choice(MONOTONIC_S))
