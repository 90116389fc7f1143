"""What a disk's blocks must hold: each sector has its number and that of the write it came from."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vuproc.spec.blk import SECTOR_SIZE

BLOCK_SIZE = 4096
SECTORS = BLOCK_SIZE // SECTOR_SIZE
ZEROES = 0
"""The number of a write of zeroes; a block holds them at first."""

_STAMP = struct.Struct("<QQQQ")
_MAGIC = 0x5EC0_17DE


class Blocks:
    """The blocks [start, start + count) of a disk, over as many connections as there are.

    At most one request at a time is in flight for a block, so that what a read must find is known.
    After a write of which nobody knows what became, each sector may hold what was there before or
    what was written, until it is read: from then on it must stay.
    """

    def __init__(self, start: int, count: int) -> None:
        self.start = start
        self.count = count
        self._sequence = 0
        self._held: list[int] = [ZEROES] * count
        """By block: the number of the last write that was completed."""
        self._doubtful: dict[int, list[set[int]]] = {}
        """By block and sector: the writes of which each may hold the content, if they are many."""

    def next_sequence(self) -> int:
        """The number of one more request."""
        self._sequence += 1
        return self._sequence

    def first_sector(self, block: int) -> int:
        """Where a block begins on the disk."""
        return (self.start + block) * SECTORS

    def content(self, block: int, sequence: int) -> bytes:
        """What write number `sequence` puts into a block."""
        if sequence == ZEROES:
            return bytes(BLOCK_SIZE)
        return b"".join(self._sector(block, sector, sequence) for sector in range(SECTORS))

    def written(self, block: int, sequence: int) -> None:
        """A write was completed."""
        self._held[block] = sequence
        self._doubtful.pop(block, None)

    def doubt(self, block: int, sequence: int) -> None:
        """A write failed, or its completion was not to be seen."""
        held = self._doubtful.setdefault(block, [{self._held[block]} for _ in range(SECTORS)])
        for sector in held:
            sector.add(sequence)

    def missing(self, block: int, found: memoryview) -> tuple[bool, str] | None:
        """What is wrong with what a read found, in words, and whether it is what was there before:
        a write that is lost. None if all is well.
        """
        if block in self._doubtful:
            return self._settle(block, found)
        sequence = self._held[block]
        if found == self.content(block, sequence):
            return None
        for place in range(0, BLOCK_SIZE, _STAMP.size):
            piece = bytes(found[place : place + _STAMP.size])
            if piece != self._stamp(block, place // SECTOR_SIZE, sequence):
                break
        text = f"write {sequence} is not there, but at {place} {piece.hex()}"
        return self._is_earlier(block, place // SECTOR_SIZE, piece, sequence), text

    def _settle(self, block: int, found: memoryview) -> tuple[bool, str] | None:
        """Compare one whose content is not known, and know it from now on."""
        held = self._doubtful[block]
        for sector, may_be in enumerate(held):
            piece = bytes(found[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE])
            now = self._which(block, sector, piece, may_be)
            if now is None:
                text = f"sector {sector} has none of {sorted(may_be)}, but {piece[:32].hex()}"
                return False, text
            held[sector] = {now}
        if all(sector == held[0] for sector in held):
            self.written(block, min(held[0]))
        return None

    def _which(self, block: int, sector: int, piece: bytes, may_be: Iterable[int]) -> int | None:
        return next((n for n in may_be if piece == self._sector(block, sector, n)), None)

    def _is_earlier(self, block: int, sector: int, piece: bytes, sequence: int) -> bool:
        if piece == bytes(_STAMP.size):
            return True
        number = _STAMP.unpack(piece)[2]
        return bool(number < sequence or sequence == ZEROES) and piece == self._stamp(
            block, sector, number
        )

    def _sector(self, block: int, sector: int, sequence: int) -> bytes:
        if sequence == ZEROES:
            return bytes(SECTOR_SIZE)
        return self._stamp(block, sector, sequence) * (SECTOR_SIZE // _STAMP.size)

    def _stamp(self, block: int, sector: int, sequence: int) -> bytes:
        if sequence == ZEROES:
            return bytes(_STAMP.size)
        number = self.first_sector(block) + sector
        return _STAMP.pack(_MAGIC, number, sequence, (number * 31 + sequence) ^ _MAGIC)
