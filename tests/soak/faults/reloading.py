"""The device file changes, and the device is told."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage
from vuproc.testing.errors import ServeFailed

NOT_NOW = ("a reload is under way", "a message of the front-end waits for a worker")
"""Workers are being replaced still, or one has just died."""


class Reloading(Fault):
    """The disk's serial number, which every worker is replaced for."""

    name = "reload"
    full = 300

    def strike(self, stage: Stage) -> None:
        stage.describe(serial=f"{stage.chance.randrange(1 << 32):08x}")
        assert stage.wait_for(lambda: _reload(stage), "end of the last reload")


def _reload(stage: Stage) -> list[str] | None:
    """What was changed; None while it cannot be."""
    try:
        return stage.served.reload()
    except ServeFailed as refused:
        if any(text in refused.reason for text in NOT_NOW):
            return None
        raise
