"""A board of an author's: two inputs that are never the same."""

from __future__ import annotations

from vuproc.devices.gpio import Gpio


class Board(Gpio):
    """What LED is, ECHO is not."""

    def line_changed(self, name: str, value: int) -> None:
        self.log.info("%s is %d", name, value)
        if name == "LED":
            self.set_line("ECHO", 1 - value)
