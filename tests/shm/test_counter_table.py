"""The one table of counters: the block in C, the status and the manual say the same."""

from __future__ import annotations

import re
from pathlib import Path

from vuproc.cli.reference import counters_markdown
from vuproc.shm.counter_table import WORDS, CountersSnapshot
from vuproc.shm.counters import BLOCK_SIZE, BUCKETS, QueueCounters

ROOT = Path(__file__).parents[2]
IN_C = {
    "latency_total_ns": "latency_total",
    "stall_total_ns": "stall_total",
    "stall_last_ns": "stall_last",
}
"""What C calls it, where it calls it otherwise."""


def block_fields() -> dict[str, int]:
    """The first word of each field of `Block`, from its declaration."""
    text = (ROOT / "vuproc" / "shm" / "counters.pxd").read_text()
    sizes = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", text)}
    body = text.partition("cdef struct Block:")[2].partition("\n\n")[0]
    places, at = {}, 0
    for name, length in re.findall(r"uint64_t (\w+)(?:\[(\w+)\])?", body):
        places[name] = at
        at += sizes.get(length) or int(length or 1)
    assert 8 * at == BLOCK_SIZE
    return places


def test_each_row_names_the_word_that_the_block_has() -> None:
    places = block_fields()
    assert {name: word.place for name, word in WORDS.items()} == {
        name: places[IN_C.get(name, name)] for name in WORDS
    }


def test_a_snapshot_has_a_value_for_each_row() -> None:
    words = bytearray(BLOCK_SIZE)
    for number, word in enumerate(WORDS.values(), 1):
        words[8 * word.place : 8 * word.place + 8] = number.to_bytes(8, "little")
    counters = QueueCounters(words, 0)
    seen = counters.snapshot()
    counters.release()
    assert seen == CountersSnapshot._make([*range(1, len(WORDS) + 1), (0,) * BUCKETS])
    grows = {name for name, word in WORDS.items() if word.counter}
    assert set(seen.counters()) == grows and "busy" not in grows


def test_the_manual_has_them() -> None:
    assert counters_markdown() in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
