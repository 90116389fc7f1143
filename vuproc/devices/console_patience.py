"""How long the output of a console's port waits for whoever is to take it."""

from __future__ import annotations

from collections.abc import Callable

from vuproc.device import Device, Timer

PATIENCE_S = 0.25
"""So long may output to a console wait for its reader. Linux does nothing else meanwhile: a CPU of
the guest goes round in circles with a lock held, until the device has taken the text."""


class Patience:
    """That of port `number`. When it ends, `stands_still` says whether nothing has moved after all;
    and `go_on` is called.
    """

    def __init__(
        self,
        device: Device,
        number: int,
        stands_still: Callable[[], bool],
        go_on: Callable[[], None],
    ) -> None:
        self.lost = False
        """Nobody has taken anything for a while: output is dropped."""
        self._device = device
        self._number = number
        self._stands_still = stands_still
        self._go_on = go_on
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Output has to wait from now on, if it did not yet."""
        if self._timer is None:
            self._timer = self._device.call_later(PATIENCE_S, self._end)

    def taken(self) -> None:
        """The other end takes output."""
        if self.lost:
            self._device.log.info("port %d: its output is taken again", self._number)
        self.renew()

    def renew(self) -> None:
        """There is somebody else at the other end."""
        self.lost = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        """Have the text taken and thrown away, rather than the guest stand still."""
        self._timer = None
        if self._stands_still():
            self.lost = True
            self._device.log.warning(
                "port %d: its output is not taken, and dropped until it is", self._number
            )
        self._go_on()
