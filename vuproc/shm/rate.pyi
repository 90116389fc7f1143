from typing import Final, final

from typing_extensions import Buffer

MOST: Final[int]
"""Tokens a second, and of a bucket, that there can be."""
WORD_BYTES: Final[int]

@final
class Rate:
    """A bucket of tokens as one word of shared memory: the time (CLOCK_MONOTONIC, ns) at which it
    is full again. Zero: it is full.
    """

    def __init__(self, buffer: Buffer, index: int, per_second: float, burst: float) -> None:
        """Use word `index` of a writable buffer that is aligned to 8 bytes: so many tokens come a
        second, and `burst` (1 or more) are there at most.

        Raises ValueError if the buffer has no such word or is not aligned, or for other numbers.
        """

    def grant(self, wanted: int) -> int:
        """Take up to so many tokens; how many there were."""

    def spend(self, tokens: float) -> None:
        """Take so many, also if that is more than there are: those that follow wait the longer. A
        negative number gives back.
        """

    def wait_ns(self) -> int:
        """Nanoseconds until there is a token, or as many as come in a millisecond, if the bucket
        holds twice as many; 0: now.
        """
