"""What the control process waits for, and what it attends to while it waits for one thing."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from vuproc.chores import Meanwhile


class PollSet:
    """The descriptors of the control process, each with what to call when it is ready.

    `selector` has a callable without arguments as the data of each. `refresh` is called before the
    set is used: it brings descriptors in step that others open and close.
    """

    def __init__(self) -> None:
        # Not epoll: what is registered there stays as long as anybody has the file open, and our
        # keeper has copies of the workers' pidfds. A dead worker's would be reported under the
        # number that its successor's got.
        self.selector = selectors.PollSelector()
        self.refresh: Callable[[], None] = lambda: None
        self.tend: Callable[[], float | None] = lambda: None
        """Does what is due also while something waits; seconds until it wants to be called."""
        self.attends_operators = False
        """Whether there is a device that operators can ask about."""
        self._always: set[int] = set()
        self._waiting = False

    @property
    def waiting(self) -> bool:
        """A message, or a change of ours, waits for a worker: nothing else may be begun."""
        return self._waiting

    def add(self, number: int, action: Callable[[], None], *, always: bool = False) -> None:
        """Call `action` when a descriptor is readable; `always`: also while something waits."""
        if always:
            self._always.add(number)
            action = Meanwhile(action)
        self.selector.register(number, selectors.EVENT_READ, action)

    def turn(self, patience: float | None) -> bool:
        """Wait up to `patience` seconds (None: for ever), and call what is ready; whether anything
        was.
        """
        self.refresh()
        ready = self.selector.select(patience)
        for key, _ in ready:
            if self._is_current(key):
                key.data()
            # It may have closed a worker's descriptors, whose numbers the next one may get anew.
            self.refresh()
        return bool(ready)

    def wait_readable(self, number: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds until a descriptor is readable; whether it is.

        The service manager and whoever asks for the status get their answers meanwhile. Front-ends
        and workers do not, since something of theirs is under way.
        """
        deadline = time.monotonic() + timeout
        was_waiting, self._waiting = self._waiting, True
        try:
            while (left := deadline - time.monotonic()) > 0:
                # A worker that was replaced before this wait has closed its descriptors, whose
                # numbers an operator's connection may get.
                self.refresh()
                with selectors.PollSelector() as selector:
                    selector.register(number, selectors.EVENT_READ, None)
                    for key in self._attended():
                        selector.register(key.fd, key.events, key.data)
                    due = self.tend()
                    ready = selector.select(left if due is None else min(left, due))
                self.tend()
                for key, _ in ready:
                    if key.fd != number and self._is_current(key):
                        key.data()
                if any(key.fd == number for key, _ in ready):
                    return True
        finally:
            self._waiting = was_waiting
        return False

    def close(self) -> None:
        """Close the set, not the descriptors."""
        self.selector.close()

    def _attended(self) -> list[selectors.SelectorKey]:
        """What is looked after while something waits."""
        return [
            key
            for key in self.selector.get_map().values()
            if isinstance(key.data, Meanwhile)
            and (self.attends_operators or key.fd in self._always)
        ]

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        """Whether what is ready is still polled so: what came before it in this turn may have
        closed it.
        """
        now = self.selector.get_map().get(key.fd)
        return now is not None and now.data is key.data
