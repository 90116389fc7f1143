"""What is fuzzed, by name: a function of bytes that must not raise, and bytes to begin with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.fuzz.grammar import seeds
from tests.fuzz.session_target import session_target
from tests.fuzz.wire_target import header_seeds, wire_seeds, wire_target
from vuproc.spec.vhost_user import BACK_END, FRONT_END


@dataclass(frozen=True)
class Target:
    """`run` raises if the bytes have found a fault. `seeds`: a corpus, by names."""

    run: Callable[[bytes], None]
    seeds: Mapping[str, bytes]


TARGETS: Mapping[str, Target] = {
    "wire": Target(
        wire_target, {**wire_seeds(FRONT_END), **wire_seeds(BACK_END), **header_seeds()}
    ),
    "session": Target(session_target, seeds()),
}


def changed(corpus: Sequence[bytes], choose: random.Random) -> bytes:
    """Something new out of the corpus: bytes flipped, dropped, doubled, and put in from another."""
    data = bytearray(choose.choice(corpus))
    for _ in range(choose.randint(1, 6)):
        at = choose.randrange(len(data) + 1)
        match choose.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << choose.randrange(8)
            case 1 if at < len(data):
                data[at] = choose.choice((0, 1, 0xFF, choose.randrange(256)))
            case 2:
                del data[at : at + choose.randint(1, 8)]
            case 3:
                data[at:at] = data[at : at + choose.randint(1, 40)]
            case _:
                other = choose.choice(corpus)
                begin = choose.randrange(len(other))
                data[at:at] = other[begin : begin + choose.randint(1, 60)]
    return bytes(data)
