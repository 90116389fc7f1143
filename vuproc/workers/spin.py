"""How long a worker looks for work before it sleeps: a window that tunes itself.

To be woken costs the driver's side a system call and both sides some microseconds, so a worker
whose sleeps turn out short looks again and again instead. It does so only where that takes the CPU
from nobody: not if more workers of the device are awake than there are CPUs, nor if others want
this one's CPU.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Literal

FIRST_NS = 10_000
"""The first window of `auto`, once a sleep was short."""
LONGEST_NS = 50_000
"""Its longest, and what a short sleep is."""
CHECK_NS = 10_000_000
"""Between two looks at who else wants the CPUs."""
REFRAIN_NS = 100_000_000
"""How long not to spin after somebody else wanted this CPU."""
MOST_TAKEN = 2
"""Times that the CPU may be taken away between two looks: the kernel's own threads do it, too."""


class Spin:
    """The window of one worker. `poll` is the option of the device file.

    `awake()` is the number of the device's workers that do not sleep, this one included.
    """

    def __init__(
        self,
        poll: Literal["auto", "off"] | int,
        awake: Callable[[], int],
        cpus: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._fixed = poll != "auto"
        self._window = poll * 1000 if isinstance(poll, int) else 0
        self._awake = awake
        self._cpus = len(os.sched_getaffinity(0)) if cpus is None else cpus
        self._clock = clock
        self._allowed = True
        self._checked = 0
        self._refrain_until = 0
        self._taken = 0

    @property
    def window_ns(self) -> int:
        """Nanoseconds to look for work before the next sleep; 0: sleep at once."""
        if self._window == 0:
            return 0
        now = self._clock()
        if now - self._checked >= CHECK_NS:
            self._check(now)
        return self._window if self._allowed else 0

    def slept(self, nanoseconds: int) -> None:
        """Learn from a sleep, after which there was something to do."""
        if self._fixed:
            return
        if nanoseconds + self._window <= LONGEST_NS:
            self._window = min(LONGEST_NS, max(FIRST_NS, 2 * self._window))
        elif self._window:
            self._window = self._window // 4 if self._window // 4 >= FIRST_NS else 0

    def _check(self, now: int) -> None:
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        if now - self._checked < 2 * CHECK_NS and taken - self._taken > MOST_TAKEN:
            self._refrain_until = now + REFRAIN_NS
        self._checked, self._taken = now, taken
        self._allowed = now >= self._refrain_until and self._awake() <= self._cpus
