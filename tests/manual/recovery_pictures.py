"""Draws the pictures of docs/recovery-in-pictures.md: `python -m tests.manual.recovery_pictures`.

The rules that they show are those of docs/recovery.md, by the names that they have there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.manual.svg import EDGE, INK, QUIET, Svg

DOCS = Path(__file__).parents[2] / "docs"

AMBER, GREEN, BLUE, GREY, RED = "#ffd33d", "#7ee2a8", "#9ecbff", "#eaeef2", "#cf222e"


# ---- the record around a death -------------------------------------------------------------------

MARKED, BOTH, SHOWN, AGAIN = "marked", "marked, shown", "done", "again"
FILLS = {MARKED: AMBER, BOTH: AMBER, SHOWN: GREEN, AGAIN: BLUE}


class Step(NamedTuple):
    """What the record and the ring say after some stores. `heads` are A, B and C."""

    title: str
    heads: tuple[str, str, str]
    used: int
    """Of the driver's ring, `used.idx`."""
    noted: int
    """Of the record, `used_idx`."""
    batch: str
    """`last_batch_head`."""
    dead: bool = False
    """A worker dies after it."""


STEPS = (
    Step("A, B and C\nare fetched\nF1 to F3", (MARKED, MARKED, MARKED), 0, 0, "-"),
    Step("A is done:\nits used element\nC1, C2", (MARKED, MARKED, MARKED), 0, 0, "A"),
    Step("and is shown:\none store\nC3", (BOTH, MARKED, MARKED), 1, 0, "A", dead=True),
    Step("the next worker:\n1 - 0 = 1 head,\nits mark goes", (SHOWN, MARKED, MARKED), 1, 1, "A"),
    Step("what is marked\nis run again,\nin its order", (SHOWN, AGAIN, AGAIN), 1, 1, "A"),
    Step("all are done\nand shown\nC1 to C5", (SHOWN, SHOWN, SHOWN), 3, 3, "C"),
)
LEFT, TOP, WIDE, HIGH, GAP = 150, 104, 128, 34, 14


def record() -> Svg:
    """The in-flight record of three requests around a death between C3 and C5."""
    width = LEFT + len(STEPS) * (WIDE + GAP) + 22
    svg = Svg(width, 372, "The in-flight record around the death of a worker")
    for row, name in enumerate("ABC"):
        svg.text(20, TOP + 22 + row * (HIGH + 8), f"head {name}", bold=True)
    for row, name in enumerate(("ring: used.idx", "record: used_idx", "last_batch_head")):
        svg.text(20, TOP + 152 + row * 22, name, mono=True, size=12)
    for column, step in enumerate(STEPS):
        x = LEFT + column * (WIDE + GAP)
        svg.text(x + WIDE / 2, 30, step.title, middle=True)
        for row, state in enumerate(step.heads):
            y = TOP + row * (HIGH + 8)
            svg.box(x, y, WIDE, HIGH, FILLS[state], EDGE)
            svg.text(x + WIDE / 2, y + 22, state, middle=True)
        for row, value in enumerate((str(step.used), str(step.noted), step.batch)):
            svg.text(x + WIDE / 2, TOP + 152 + row * 22, value, middle=True, mono=True)
        if step.dead:
            edge = x + WIDE + GAP / 2
            svg.line([(edge, 14), (edge, TOP + 206)], RED, dashed=True, width=2)
            svg.text(edge, TOP + 226, "SIGKILL", RED, middle=True, bold=True)
    _legend(svg, 348)
    return svg


def _legend(svg: Svg, y: float) -> None:
    words = {
        MARKED: "marked: fetched, and not known to be done",
        AGAIN: "run again by the next worker",
        SHOWN: "done: the driver has it, exactly once",
    }
    x = 20
    for state, said in words.items():
        svg.box(x, y - 12, 16, 14, FILLS[state], EDGE)
        svg.text(x + 24, y, said, size=12)
        x += 44 + 7 * len(said)


# ---- who does what, in time ----------------------------------------------------------------------

LANE, NAMES = 62, 140
NOTE = 12


class Stretch(NamedTuple):
    """What somebody is doing from one moment to another."""

    lane: str
    begin: float
    end: float
    said: str
    fill: str


class Message(NamedTuple):
    """Something that goes from one to another."""

    sender: str
    receiver: str
    at: float
    said: str


def timeline(
    title: str,
    lanes: tuple[str, ...],
    stretches: tuple[Stretch, ...],
    messages: tuple[Message, ...],
    deaths: Mapping[str, float],
    wide: int,
) -> Svg:
    """Lanes from above, time from the left; not to scale."""
    height = 40 + len(lanes) * LANE + 20
    svg = Svg(NAMES + wide + 24, height, title)
    middle = {lane: 40 + number * LANE + 18 for number, lane in enumerate(lanes)}
    for lane, y in middle.items():
        svg.text(16, y + 5, lane, bold=True)
        end = deaths.get(lane, wide)
        svg.line([(NAMES, y), (NAMES + end, y)])
    for each in stretches:
        y = middle[each.lane]
        svg.box(NAMES + each.begin, y - 16, each.end - each.begin, 32, each.fill, EDGE)
        lines = each.said.count("\n")
        at = NAMES + (each.begin + each.end) / 2
        svg.text(at, y + 4 - lines * 7, each.said, size=NOTE, middle=True)
    for lane, moment in deaths.items():
        y, x = middle[lane], NAMES + moment
        svg.line([(x - 7, y - 7), (x + 7, y + 7)], RED, width=3)
        svg.line([(x - 7, y + 7), (x + 7, y - 7)], RED, width=3)
    for message in messages:
        begin, end = middle[message.sender], middle[message.receiver]
        down = 1 if end > begin else -1
        x = NAMES + message.at
        svg.line([(x, begin + 17 * down), (x, end - 17 * down)], INK, arrow=True)
        svg.text(x + 6, (begin + end) / 2 + 4, message.said, QUIET, size=11)
    svg.text(16, height - 10, "Time goes from left to right, and is not to scale.", QUIET, size=11)
    return svg


def worker() -> Svg:
    """The standby in the place of a worker."""
    driver, old, master, standby = "driver", "worker", "master", "standby"
    return timeline(
        "A worker's death, and the standby in its place",
        (driver, old, master, standby),
        (
            Stretch(driver, 0, 130, "requests", GREY),
            Stretch(driver, 130, 640, "its requests wait in the ring", AMBER),
            Stretch(driver, 640, 790, "goes on", GREEN),
            Stretch(old, 0, 120, "serves", GREEN),
            Stretch(master, 215, 330, "notes how it\nended", BLUE),
            Stretch(standby, 0, 315, "waits: all imported, the device made", GREY),
            Stretch(standby, 345, 480, "maps memory,\nreads the record", BLUE),
            Stretch(standby, 485, 620, "runs again what\nis marked", BLUE),
            Stretch(standby, 625, 790, "serves", GREEN),
        ),
        (
            Message(old, master, 205, "its pidfd is readable"),
            Message(master, standby, 325, "queue, memory, rings, record"),
            Message(standby, driver, 634, "used.idx, and one call"),
        ),
        {old: 130},
        790,
    )


def master() -> Svg:
    """The standby master in the place of a master."""
    vmm, old, workers, keeper, standby = "VMM", "master", "workers", "keeper", "standby master"
    return timeline(
        "A master's death, and the standby master in its place",
        (vmm, old, workers, keeper, standby),
        (
            Stretch(vmm, 0, 110, "messages", GREY),
            Stretch(vmm, 110, 700, "stays connected: the keeper has the socket, too", AMBER),
            Stretch(vmm, 700, 860, "gets its answer", GREEN),
            Stretch(old, 0, 100, "serves", GREEN),
            Stretch(workers, 0, 140, "serve", GREEN),
            Stretch(workers, 560, 690, "new ones recover\ntheir rings", BLUE),
            Stretch(workers, 695, 860, "serve", GREEN),
            Stretch(keeper, 0, 150, "keeps descriptors", GREY),
            Stretch(keeper, 165, 300, "sees that nothing\nof it is left", BLUE),
            Stretch(keeper, 320, 540, "keeps descriptors", GREY),
            Stretch(keeper, 565, 860, "starts another standby, a second later", GREY),
            Stretch(standby, 0, 300, "waits: all imported, a forkserver", GREY),
            Stretch(
                standby, 325, 540, "reads state file, socket, outbox:\nwhat was under way?", BLUE
            ),
            Stretch(standby, 560, 860, "is the master", GREEN),
        ),
        (
            Message(workers, keeper, 157, "all are dead"),
            Message(keeper, standby, 312, "every descriptor, by name"),
            Message(standby, workers, 550, ""),
        ),
        {old: 110, workers: 150},
        860,
    )


PICTURES = {
    DOCS / "recovery-record.svg": record,
    DOCS / "recovery-worker.svg": worker,
    DOCS / "recovery-master.svg": master,
}

if __name__ == "__main__":
    for path, draw in PICTURES.items():
        path.write_text(str(draw()), encoding="utf-8")
