"""What one crash test does: the ring, the load, and how its driver and its device behave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Scenario:
    """`total` requests, `window` at a time, on a ring of `size` entries that begins at `base`."""

    name: str
    size: int = 8
    base: int = 0
    event_idx: bool = False
    indirect: bool = False
    total: int = 6
    window: int = 3
    defer: bool = False
    """The device defers every other request and finishes those out of order, some much later."""
    resubmit: Literal["run", "drop", "fail"] = "run"
    lazy: bool = False
    """The driver wants its interrupt only after most of what it waits for (EVENT_IDX)."""
    alert: bool = False
    """The driver takes interrupts at any time, not only while the worker sleeps or is dead."""
    fresh: bool = True
    """The ring is told that its record is new; otherwise the zeroes in it say so."""
    lost: int = 0
    """Requests which a back-end before ours has lost: the used index is behind for good."""
    budget: int = 100
    """Requests of one drain."""
    one_by_one: bool = False
    """Workers after the first have a budget of one: they take a dead one's batch apart."""
    device: Literal["python", "native", "blk"] = "python"
    """A handler in Python, the same in native code, or the native disk."""

    gathers: bool = False
    """The handler in Python gets requests by the batch."""
    pulls: bool = False
    """The device takes requests one by one, instead of being handed them."""
    held: int = 0
    """The last requests, which the device gives back each time: it has nothing to put there."""
    twice: bool = False
    """The device gives each request back once, and has all of them readmitted."""
    own_word: bool = False
    """Each request says itself, before its side effect, that it is to be dropped."""
    logged: bool = False
    """The device marks what it writes in a dirty log."""
    packed: bool = False
    """The ring is a packed one; `base` counts slots from the first of the first round."""
    mixed: bool = False
    """Every other request of a packed ring is a table, so that chains have one slot or two."""
    bare: bool = False
    """The driver of a packed ring leaves the bits of a chain's later slots as they were."""

    def __post_init__(self) -> None:
        heads = self.size if self.indirect else self.size // 2
        if self.packed:
            heads = (self.size - self.lost) // (1 if self.indirect else 2)
        if not self.held < self.window <= heads:
            raise ValueError(f"{self.name}: {self.window} requests and {heads} heads")

    @property
    def at_most_once(self) -> bool:
        return self.own_word or self.resubmit != "run"


BATCH = Scenario("batch", total=6, window=3)
SCENARIOS = (
    BATCH,
    Scenario("event_idx", event_idx=True, total=6, window=3),
    Scenario("lazy", event_idx=True, lazy=True, total=7, window=4),
    Scenario("indirect", indirect=True, event_idx=True, size=4, total=8, window=4),
    Scenario("wrap", base=65533, size=4, total=6, window=2),
    Scenario(
        "wrap_event_idx", base=65532, event_idx=True, indirect=True, size=2, total=6, window=2
    ),
    Scenario("out_of_order", defer=True, event_idx=True, base=65534, total=7, window=4),
    Scenario("out_of_order_flags", defer=True, indirect=True, size=4, total=7, window=3),
    Scenario("small_budget", budget=1, base=65534, total=5, window=3, fresh=False),
    Scenario("lost", lost=2, base=1, event_idx=True, total=4, window=3),
    Scenario("at_most_once", resubmit="drop", event_idx=True, total=5, window=3),
    Scenario("at_most_once_deferred", resubmit="fail", defer=True, total=5, window=3),
    Scenario("one_entry", size=1, indirect=True, base=65534, event_idx=True, total=4, window=1),
    Scenario("alert", alert=True, event_idx=True, base=65530, total=8, window=4),
    Scenario("native", device="native", event_idx=True, base=65533, total=6, window=3),
    Scenario("native_deferred", device="native", defer=True, indirect=True, total=7, window=4),
    Scenario("native_budget", device="native", budget=1, total=4, window=3, fresh=False),
    Scenario("native_at_most_once", device="native", resubmit="drop", total=5, window=3),
    Scenario("held", held=2, base=65534, total=6, window=4),
    Scenario("held_deferred", held=2, defer=True, indirect=True, event_idx=True, total=7, window=5),
    Scenario("held_lost", held=1, lost=2, base=1, total=4, window=3),
    Scenario("twice", twice=True, event_idx=True, base=65533, total=5, window=3),
    Scenario("twice_held", twice=True, held=1, budget=2, total=5, window=3),
    Scenario("pulled", pulls=True, base=65534, total=6, window=3),
    Scenario("pulled_held", pulls=True, held=2, defer=True, event_idx=True, total=6, window=4),
    Scenario("pulled_at_most_once", pulls=True, resubmit="fail", total=5, window=3),
    Scenario("native_pulled", device="native", pulls=True, base=65534, total=6, window=3),
    Scenario(
        "native_pulled_held",
        device="native",
        pulls=True,
        held=2,
        defer=True,
        event_idx=True,
        total=6,
        window=4,
    ),
    Scenario("native_pulled_once", device="native", pulls=True, resubmit="fail", total=5, window=3),
    Scenario("gathered", gathers=True, event_idx=True, base=65533, total=7, window=4),
    Scenario("gathered_deferred", gathers=True, defer=True, indirect=True, total=7, window=4),
    Scenario("gathered_held", gathers=True, held=1, twice=True, total=5, window=3),
    Scenario("gathered_once", gathers=True, resubmit="drop", total=5, window=3),
    Scenario("own_word", own_word=True, base=65534, total=5, window=3),
    Scenario("own_word_held", own_word=True, held=1, defer=True, pulls=True, total=5, window=3),
    Scenario("logged", logged=True, event_idx=True, total=6, window=3),
    Scenario("logged_native", logged=True, device="native", indirect=True, total=6, window=3),
    Scenario("blk", device="blk", base=65534, total=6, window=3),
    Scenario("blk_indirect", device="blk", indirect=True, event_idx=True, size=4, total=7),
)
PACKED = tuple(
    replace(scenario, name=f"packed_{scenario.name}", packed=True)
    for scenario in (
        Scenario("batch", total=6, window=3),
        Scenario("event_idx", event_idx=True, base=7, total=6, window=3),
        Scenario("lazy", event_idx=True, lazy=True, base=13, total=7, window=4),
        Scenario("indirect", indirect=True, event_idx=True, size=4, base=3, total=8, window=4),
        Scenario("chains_over_the_wrap", size=5, base=4, total=6, window=2),
        Scenario("even_round", size=5, base=9, event_idx=True, total=6, window=2),
        Scenario("round_two", size=4, base=4, total=5, window=2),
        Scenario("mixed", size=7, base=5, mixed=True, defer=True, total=7, window=3),
        Scenario("bare", size=7, base=6, mixed=True, bare=True, defer=True, total=7, window=3),
        Scenario("bare_even", size=6, base=7, bare=True, event_idx=True, total=6, window=3),
        Scenario("out_of_order", defer=True, event_idx=True, size=9, base=7, total=7, window=4),
        Scenario("out_of_order_flags", defer=True, indirect=True, size=4, total=7, window=3),
        Scenario("small_budget", budget=1, base=7, total=5, window=3, fresh=False),
        Scenario("taken_apart", one_by_one=True, alert=True, base=7, total=6, window=3),
        Scenario("lost", lost=2, base=1, event_idx=True, total=4, window=3),
        Scenario("at_most_once", resubmit="drop", event_idx=True, total=5, window=3),
        Scenario("at_most_once_deferred", resubmit="fail", defer=True, total=5, window=3),
        Scenario("one_slot", size=1, indirect=True, base=1, event_idx=True, total=4, window=1),
        Scenario("alert", alert=True, event_idx=True, base=5, total=8, window=4),
        Scenario("native", device="native", event_idx=True, base=7, total=6, window=3),
        Scenario("native_deferred", device="native", defer=True, indirect=True, total=7, window=4),
        Scenario("native_mixed", device="native", defer=True, mixed=True, size=7, base=6),
        Scenario("native_pulled", device="native", pulls=True, mixed=True, size=7, base=6),
        Scenario(
            "native_pulled_held", device="native", pulls=True, held=2, base=7, size=9, window=4
        ),
        Scenario("held", held=2, base=7, size=9, total=6, window=4),
        Scenario("held_deferred", held=2, defer=True, indirect=True, total=7, window=5),
        Scenario("held_lost", held=1, lost=2, base=1, total=4, window=3),
        Scenario("twice", twice=True, event_idx=True, base=7, total=5, window=3),
        Scenario("twice_held", twice=True, held=1, budget=2, mixed=True, total=5, window=3),
        Scenario("pulled", pulls=True, base=7, total=6, window=3),
        Scenario("pulled_held", pulls=True, held=2, defer=True, event_idx=True, window=4),
        Scenario("gathered", gathers=True, event_idx=True, base=7, total=7, window=4),
        Scenario("gathered_mixed", gathers=True, defer=True, mixed=True, size=7, base=6),
        Scenario("own_word_held", own_word=True, held=1, defer=True, pulls=True, total=5),
        Scenario("logged", logged=True, event_idx=True, base=5, total=6, window=3),
        Scenario("logged_native", logged=True, device="native", indirect=True, total=6, window=3),
        Scenario("blk", device="blk", base=7, total=6, window=3),
        Scenario("blk_mixed", device="blk", mixed=True, event_idx=True, size=7, total=7),
    )
)
SMALL = (
    Scenario("small", total=2, window=2),
    Scenario("small_event_idx", event_idx=True, base=65535, total=2, window=2, size=4),
    Scenario("small_deferred", defer=True, indirect=True, size=2, total=3, window=2),
    Scenario("small_at_most_once", resubmit="drop", event_idx=True, total=2, window=2),
    Scenario("small_native", device="native", defer=True, event_idx=True, total=3, window=2),
    Scenario("small_gathered", gathers=True, event_idx=True, total=3, window=2),
    Scenario("small_held", held=2, base=65535, total=3, window=3, indirect=True),
    Scenario("small_blk", device="blk", total=2, window=2),
)
PACKED_SMALL = tuple(
    replace(scenario, name=f"packed_{scenario.name}", packed=True)
    for scenario in (
        Scenario("small_stop", size=1, indirect=True, base=1, total=1, window=1),
        Scenario(
            "small_taken_apart", one_by_one=True, indirect=True, size=2, base=1, total=4, window=2
        ),
        Scenario("small", base=7, total=2, window=2),
        Scenario(
            "small_mixed", size=5, base=3, mixed=True, bare=True, defer=True, total=3, window=2
        ),
        Scenario("small_event_idx", event_idx=True, size=4, base=3, total=2, window=2),
        Scenario("small_deferred", defer=True, indirect=True, size=2, base=1, total=3, window=2),
        Scenario("small_at_most_once", resubmit="drop", event_idx=True, total=2, window=2),
        Scenario("small_native", device="native", defer=True, event_idx=True, total=3, window=2),
        Scenario("small_held", held=2, base=7, total=3, window=3, indirect=True),
    )
)
"""For two crashes in one run: each store of the first life with each of the second."""
