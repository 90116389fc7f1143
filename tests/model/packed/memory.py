"""What a model of a packed ring is of: its dimensions, and the words of memory.

Words which the ring code stores at once are one word here, and taken apart by the functions below.
"""

from __future__ import annotations

from tests.model.config import Layout, Limits


class Config(Limits, frozen=True, kw_only=True):
    """A model of a packed ring.

    `lengths`: how many descriptors the chain of each request has, one request after the other and
    then from the first on again. `bare`: the driver leaves the bits of a chain's later descriptors
    as they were. `lost`: slots of requests that were lost before the ring began: the used position
    is behind the available one for good.
    """

    lengths: tuple[int, ...] = (1,)
    bare: bool = False
    lost: int = 0
    origin: int = 0
    """The place where the ring begins: below `size` in the first round, from there on in the
    second, whose wrap counter is 0."""

    @property
    def modulus(self) -> int:
        """Places come again after two rounds."""
        return 2 * self.size

    def length(self, number: int) -> int:
        """Descriptors of a request."""
        return self.lengths[number % len(self.lengths)]

    def lengths_of(self) -> str:
        return f" of {'+'.join(map(str, self.lengths))} descriptors"

    def __str__(self) -> str:
        parts = [f"{super().__str__()}, from place {self.origin}"]
        parts += ["bare"] if self.bare else []
        parts += [f"lost {self.lost}"] if self.lost else []
        return ", ".join(parts)


class Memory(Layout):
    """A packed ring and its record.

    `slot` is id, length and flags of a descriptor, `addr` its address, which stands for the buffer
    of one request.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.slot = self._row("slot[{}]", config.size)
        self.addr = self._row("addr[{}]", config.size)
        self.kick_wish = self._word("device event place")
        self.kick_flags = self._word("device event flags")
        self.call_wish = self._word("driver event")
        self.kick = self._word("kick eventfd")
        self.call = self._word("call eventfd")
        self.record = len(self.names)
        self.version = self._word("record.version")
        self.ended = self._word("record.ended")
        self.lead = self._word("record.lead")
        self.heads = self._word("record.heads")
        self.word = self._word("record.word")
        self.inflight = self._row("desc[{}].inflight", config.size)
        self.attempts = self._row("desc[{}].attempts", config.size)
        self.stage = self._row("desc[{}].stage", config.size)
        self.notes = range(self.attempts, self.stage + config.size)
        self.next = self._row("desc[{}].next", config.size)
        self.chain = self._row("desc[{}].chain", config.size)
        self.counter = self._row("desc[{}].counter", config.size)
        self.copy = self._row("desc[{}].copy", config.size)
        self.copy_addr = self._row("desc[{}].addr", config.size)

    def initial(self, config: Config, origin: int, before: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An empty ring that begins at `origin`; the record is as it was `before`."""
        words = [0] * self.record
        # What is before the origin was used in its round, the rest in the round before.
        for slot in range(config.size):
            place = origin - config.size + (slot - origin) % config.size
            words[self.slot + slot] = made(used_bits(place % config.modulus, config.size))
        if config.event_idx:
            words[self.kick_wish] = words[self.call_wish] = origin
        return (*words, *(before[self.record :] or (0,) * (len(self.names) - self.record)))

    def show(self, at: int, value: int) -> str:
        """The value of a word, for who reads a history."""
        name = self.names[at]
        if name.startswith("slot") or name.endswith("copy"):
            flags = [name for bit, name in FLAGS if value & bit]
            return f"{'+'.join(flags) or 'no flags'}, id {id_of(value)}"
        if at in (self.heads, self.word):
            return "{} (old {})".format(*halves(value))
        if name.endswith("chain"):
            return "last {} num {}".format(*halves(value))
        return str(value)


# Two small numbers in one word: places, heads of the free list, last entry and count.


def both(low: int, high: int) -> int:
    """One word of two."""
    return low | high << 8


def halves(word: int) -> tuple[int, int]:
    """The two of a word."""
    return word & 0xFF, word >> 8


# A descriptor but for its address: AVAIL and USED, NEXT, whether a device has written its length,
# and the id.

AVAIL, USED, NEXT, WRITTEN = 1, 2, 4, 8
FLAGS = ((AVAIL, "AVAIL"), (USED, "USED"), (NEXT, "NEXT"), (WRITTEN, "written"))

ENABLE, DISABLE, PLACE = 0, 1, 2
"""What the device's event area says."""


def made(bits: int, buffer: int = 0, flags: int = 0) -> int:
    """The word of a descriptor."""
    return bits | flags | buffer << 4


def with_bits(word: int, bits: int) -> int:
    """The same descriptor with other AVAIL and USED bits."""
    return word & ~(AVAIL | USED) | bits


def id_of(word: int) -> int:
    """The buffer id of a descriptor."""
    return word >> 4


def has_next(word: int) -> bool:
    """Whether another descriptor of the chain follows."""
    return bool(word & NEXT)


def available_bits(place: int, size: int) -> int:
    """AVAIL and USED of an available descriptor; the wrap counter of the first round is 1."""
    return AVAIL if place < size else USED


def used_bits(place: int, size: int) -> int:
    """AVAIL and USED of a used one."""
    return AVAIL | USED if place < size else 0


def is_available(word: int, place: int, size: int) -> bool:
    """Whether the descriptor at `place` is available in the round of that place."""
    return word & (AVAIL | USED) == available_bits(place, size)


def is_used(word: int, place: int, size: int) -> bool:
    """Whether the descriptor at `place` is used in the round of that place."""
    return word & (AVAIL | USED) == used_bits(place, size)
