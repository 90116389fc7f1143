"""One start of a daemon, from before there is anything that could be stopped."""

from __future__ import annotations

from vuproc.program.running import Running


class Starting:
    """What a stop leaves word with that comes while the process is being launched."""

    def __init__(self) -> None:
        self.given_up = False
        self.overtaken = False
        """It was given up before there was anything to stop."""
        self._running: Running | None = None

    def launched(self, running: Running) -> None:
        """There is something to stop now; it is, if that was wished for before."""
        self._running = running
        if self.given_up:
            self.overtaken = True
            running.ask_end()

    def give_up(self) -> None:
        """Have it end, at once or as soon as it can be. Takes no lock."""
        self.given_up = True
        if self._running is not None:
            self._running.ask_end()
