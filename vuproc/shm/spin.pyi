from typing import Final, Literal, final

from vuproc.shm.counters import QueueCounters

SAME_NS: Final[int]
"""The longest sleep that tells of a driver on the worker's own CPU."""
FIRST_NS: Final[int]
"""The first window of `auto`, once a sleep was short."""
LONGEST_NS: Final[int]
"""Its longest, and what a short sleep is."""
CHECK_NS: Final[int]
"""Between two looks at who else wants the CPUs."""
REFRAIN_NS: Final[int]
"""How long not to spin after somebody else wanted this CPU."""
MOST_TAKEN: Final[int]
"""Times that the CPU may be taken away between two looks: the kernel's own threads do it, too."""
MOST_VAIN: Final[int]
"""Looks in a row that find nothing, after which `auto` sleeps at once,"""
FIRST_SKIPPED: Final[int]
"""so many times at first,"""
LAST_SKIPPED: Final[int]
"""and so many in the end."""

@final
class Spin:
    """How long a worker looks for work before it sleeps: a window that tunes itself."""

    def __init__(
        self, poll: Literal["auto", "off"] | int, counters: QueueCounters | None, cpus: int
    ) -> None:
        """`poll` is the option of the device file (a number: microseconds). The segment of
        `counters` says how many of the device's workers do not sleep; None: this one alone. `cpus`
        is the number of those that they may run on.
        """

    @property
    def window_ns(self) -> int:
        """Nanoseconds to look for work before the next sleep; 0: sleep at once."""

    def window_now(self, now: int) -> int:
        """The same at this time, in ns."""

    def slept(self, nanoseconds: int, hits: int) -> None:
        """Learn from a sleep, after which there was something to do; looks have found something
        `hits` times so far.
        """

    def look(self, now: int, taken: int) -> None:
        """Look at who else wants the CPUs: this one has been taken away so often by now."""
