"""A process that stores two values in a field by turns, as fast as it can, until its input ends.

Run as `python toggler.py FD BYTES FIRST SECOND OFFSET...`: FD is the guest's memory; a field of
BYTES lies at each OFFSET of the file.
"""

from __future__ import annotations

import mmap
import os
import select
import sys


def main(fd: int, width: int, first: int, second: int, *offsets: int) -> None:
    memory = mmap.mmap(fd, os.fstat(fd).st_size)
    one, other = first.to_bytes(width, "little"), second.to_bytes(width, "little")
    places = [(at, at + width) for at in offsets]
    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:
        for _ in range(2000):
            for start, end in places:
                memory[start:end] = one
                memory[start:end] = other


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
