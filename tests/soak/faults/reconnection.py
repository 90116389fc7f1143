"""The front-end goes, in order or in the middle of requests, and another comes."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage


class Reconnection(Fault):
    """Another driver each time: its rings, its features, its depth."""

    name = "connection"
    full = 10_000

    def strike(self, stage: Stage) -> None:
        stage.hang_up()
        assert stage.connection
