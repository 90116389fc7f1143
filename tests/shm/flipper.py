"""A process that rewrites a ring's descriptors and indices without pause, until its input ends.

Run as `python flipper.py FD SIZE FILE_OFFSET GUEST_ADDRESS TABLE_OFFSET`: FD is the guest's memory,
the ring of SIZE entries lies at FILE_OFFSET, the indirect tables at TABLE_OFFSET. Half of what it
writes is sane, so that the device gets on far enough to be reading while it is written.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import sys

NEXT, WRITE, INDIRECT = 1, 2, 4
TABLE_ENTRIES = 16


def main(fd: int, size: int, ring: int, guest: int, table: int) -> None:
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    choose = random.Random(1)
    avail, used = ring + 16 * size, (ring + 18 * size + 6 + 3) & ~3
    table_guest = guest + table - ring
    addresses = [guest + 0x20000, guest + 0x3FFF0, table_guest, guest, 0, (1 << 64) - 8, 1 << 40]
    lengths = [0, 1, 16, 64, 256, 4096, 0xFFFFFFFF]

    def descriptor(entries: int) -> bytes:
        if choose.random() < 0.2:
            many = choose.choice([16, 32, 16 * TABLE_ENTRIES, 17, 0, 1 << 30])
            return struct.pack("<QIHH", table_guest, many, INDIRECT | choose.getrandbits(2), 0)
        wild = choose.random() < 0.02
        return struct.pack(
            "<QIHH",
            choose.choice(addresses) if wild else guest + 0x20000 + choose.getrandbits(12),
            choose.choice(lengths) if wild else choose.getrandbits(8),
            choose.choice([0, NEXT, WRITE, NEXT | WRITE]),
            choose.getrandbits(16) if wild else choose.randrange(entries),
        )

    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:
        for _ in range(200):
            at = ring + 16 * choose.randrange(size)
            memory[at : at + 16] = descriptor(size)
            # One field alone, as a racing guest would.
            at = ring + 16 * choose.randrange(size) + choose.choice([8, 12, 14])
            memory[at : at + 2] = choose.randrange(8).to_bytes(2, "little")
            at = table + 16 * choose.randrange(TABLE_ENTRIES)
            memory[at : at + 16] = descriptor(TABLE_ENTRIES)
            at = avail + 4 + 2 * choose.randrange(size)
            memory[at : at + 2] = choose.randrange(size).to_bytes(2, "little")
            index = int.from_bytes(memory[used + 2 : used + 4], "little")
            index += choose.randrange(size) if choose.random() < 0.99 else choose.getrandbits(16)
            memory[avail + 2 : avail + 4] = (index & 0xFFFF).to_bytes(2, "little")
            if choose.random() < 0.01:
                at = used + 2 * choose.randrange(2 + 4 * size)
                memory[at : at + 2] = choose.randbytes(2)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
