"""What three other back-ends do with each message and bit, as read in their sources.

What is not said here was not looked at, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.compatibility.names import Kind, of_kind

NOT_CHECKED = "not checked"
YES, NO = "yes", "no"
OPTION = "build option"
HOOK = "device's hook"
CHOICE = "device's choice"


class Peer(NamedTuple):
    """One back-end; `words` has what it does, by name."""

    name: str
    version: str
    words: Mapping[str, str]

    def word(self, name: str) -> str:
        """What it does with a message or bit, in a word or two."""
        return self.words.get(name, NOT_CHECKED)


def _numbered(kind: Kind, words: Mapping[str, Iterable[int]]) -> dict[str, str]:
    by_number = {item.number: item.name for item in of_kind(kind)}
    return {by_number[number]: word for word, numbers in words.items() for number in numbers}


RUST_VMM = Peer(
    "rust-vmm",
    "the crates vhost-user-backend 0.22.0 and vhost 0.16.0",
    {
        **_numbered(
            Kind.FRONT_END,
            {
                YES: (
                    *range(1, 7),
                    *range(8, 19),
                    21,
                    24,
                    25,
                    33,
                    34,
                    *range(36, 39),
                    *range(41, 45),
                ),
                OPTION: range(28, 31),
                NO: (7, 19, 20, 22, 23, 26, 27, 31, 32, 35, 39, 40, 45),
            },
        ),
        # Its lookup sends a descriptor with the question and takes none with the answer.
        **_numbered(Kind.BACK_END, {YES: (6, 7, 9, 10), "defective": (8,), NO: range(1, 6)}),
        **_numbered(
            Kind.PROTOCOL,
            {
                CHOICE: (0,),
                YES: (1, 3, 5, 9, 10, 13, 15, 18, 19),
                OPTION: (8, 17),
                NO: (2, 4, 6, 7, 11, 12, 14, 16, 20, 21, 23),
                "as bit 21": (22,),
            },
        ),
        **_numbered(Kind.RING, {CHOICE: (26, 28, 29, 30, 32), NO: (33, 34, 35)}),
    },
)

LIBVHOST_USER = Peer(
    "libvhost-user",
    "of QEMU 10.2.2; a device may take any message itself before the library does",
    {
        **_numbered(
            Kind.FRONT_END,
            {
                YES: (*range(1, 19), 21, 24, 25, *range(28, 33), *range(35, 39), 41),
                HOOK: (33, 34),
                NO: (19, 20, 22, 23, 26, 27, 39, 40, *range(42, 46)),
            },
        ),
        **_numbered(Kind.BACK_END, {YES: (2, 3, 4, 6, 7, 8), NO: (1, 9, 10)}),
        **_numbered(
            Kind.PROTOCOL,
            {
                YES: (0, 1, 3, 5, 8, 10, 11, 15),
                HOOK: (9, 13),
                CHOICE: (12, 14, 18),
                NO: (2, 4, 6, 7, 16, 17, *range(19, 24)),
            },
        ),
        **_numbered(Kind.RING, {YES: (26, 28, 29, 30), NO: (33, 34, 35)}),
    },
)

DPDK = Peer(
    "DPDK",
    "its vhost library at commit 38f72e5",
    {
        **_numbered(
            Kind.FRONT_END,
            {
                YES: (*range(1, 7), *range(8, 23), 26, 27, 31, 32, *range(36, 41)),
                "ignored": (7,),
                "vDPA": (24, 25),
                OPTION: range(28, 31),
                NO: (23, 33, 34, 35, *range(41, 46)),
            },
        ),
        **_numbered(Kind.BACK_END, {YES: (1, 2), "vDPA": (3,), NO: range(4, 11)}),
        **_numbered(
            Kind.PROTOCOL,
            {
                YES: (*range(6), 7, 10, 11, 15, 16),
                OPTION: (8,),
                CHOICE: (9, 12),
                NO: (6, 13, 14, *range(17, 24)),
            },
        ),
        **_numbered(
            Kind.RING,
            {YES: (*range(26, 31), 32, 33, 34, 35), NO: (24, 36, 37, 38, 40)},
        ),
    },
)

PEERS = (RUST_VMM, LIBVHOST_USER, DPDK)
