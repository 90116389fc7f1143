"""What a front-end has really said, from the lines of `log_level: debug`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tests.compatibility.names import ITEMS, protocol_name, ring_name
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature

ANSWERED = re.compile(r"\b([A-Z][A-Z_]+)( .*)? -> (.*) \(\d+\.\d+ ms\)$")
SENT = re.compile(r"\b([A-Z][A-Z_]+) to the front-end$")
VALUE = re.compile(r"\bvalue=(\w+)")


def heard(lines: Iterable[str]) -> set[str]:
    """Names of the messages that came and were not refused, of those that went out, and of the bits
    that were acknowledged.
    """
    return {name for line in lines for name in _in_line(line) if name in ITEMS}


def _in_line(line: str) -> Iterator[str]:
    if found := SENT.search(line):
        yield f"BACKEND_{found[1]}"
    found = ANSWERED.search(line)
    if not found or "refused: " in found[3]:
        return
    name, fields = found[1], found[2] or ""
    yield name
    value = VALUE.search(fields)
    bits = int(value[1], 0) if value else 0
    match name:
        case "SET_PROTOCOL_FEATURES":
            yield from (protocol_name(bit) for bit in ProtocolFeature if bits & bit)
        case "SET_FEATURES":
            yield from (ring_name(bit) for bit in Feature if bits & bit)
