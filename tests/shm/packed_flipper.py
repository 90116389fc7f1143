"""A process that rewrites a packed ring and its record without pause, until its input ends.

Run as `python packed_flipper.py FD SIZE FILE_OFFSET GUEST_ADDRESS TABLE_OFFSET RECORD_FD
RECORD_OFFSET RECORD_BYTES`: FD is the guest's memory, the ring of SIZE slots lies at FILE_OFFSET
with its two event areas behind it, the indirect tables at TABLE_OFFSET. Half of what it writes is
sane, so that the device gets on far enough to be reading while it is written.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import sys

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
TABLE_ENTRIES = 16


class Flipper:
    """Writes to all parts of the ring."""

    def __init__(self, fd: int, size: int, ring: int, guest: int, table: int) -> None:
        self.memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self.size = size
        self.ring = ring
        self.table = table
        self.data = guest + 0x20000
        self.table_guest = guest + table - ring
        self.choose = random.Random(1)
        self.addresses = [self.data, guest + 0x3FFF0, self.table_guest, guest, 0, (1 << 64) - 8]
        self.lengths = [0, 1, 16, 64, 256, 4096, 0xFFFFFFFF]

    def descriptor(self) -> bytes:
        choose = self.choose
        flags = choose.choice([AVAIL, USED, AVAIL, USED, AVAIL | USED, 0])
        if choose.random() < 0.2:
            many = choose.choice([16, 32, 16 * TABLE_ENTRIES, 17, 0, 1 << 30])
            flags |= INDIRECT | choose.choice([0, 0, 0, NEXT, WRITE])
            return struct.pack("<QIHH", self.table_guest, many, choose.getrandbits(16), flags)
        wild = choose.random() < 0.02
        return struct.pack(
            "<QIHH",
            choose.choice(self.addresses) if wild else self.data + choose.getrandbits(12),
            choose.choice(self.lengths) if wild else choose.getrandbits(8),
            choose.getrandbits(16),
            flags | choose.choice([0, 0, NEXT, WRITE, NEXT | WRITE]),
        )

    def turn(self) -> None:
        """One write to each part, whole or one field alone, as a racing guest would."""
        memory, choose = self.memory, self.choose
        at = self.ring + 16 * choose.randrange(self.size)
        memory[at : at + 16] = self.descriptor()
        at = self.ring + 16 * choose.randrange(self.size) + choose.choice([8, 12, 14])
        memory[at : at + 2] = choose.choice([0, NEXT, WRITE, AVAIL, USED, 64]).to_bytes(2, "little")
        at = self.table + 16 * choose.randrange(TABLE_ENTRIES)
        memory[at : at + 16] = self.descriptor()
        at = self.ring + 16 * self.size + 2 * choose.randrange(4)
        memory[at : at + 2] = choose.choice([choose.randbytes(2), b"\0\0", b"\1\0", b"\2\0"])


def main(
    fd: int, size: int, ring: int, guest: int, table: int, record: int, offset: int, length: int
) -> None:
    flipper = Flipper(fd, size, ring, guest, table)
    choose = flipper.choose
    log = mmap.mmap(record, os.fstat(record).st_size)
    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:
        for _ in range(200):
            flipper.turn()
            # Seldom: a record that has been hit is of no use until the ring is set up anew.
            if choose.random() < 0.0005:
                log[offset + choose.randrange(length)] ^= 1 << choose.randrange(8)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
