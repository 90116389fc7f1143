"""What is mapped in a device's shared memory regions, as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping

from vuproc.mapping import ShmemMapping, place_problem

MAPPINGS_MAX = 1024
"""Mappings of one device: they are part of its state, which has to stay small."""

Known = tuple[tuple[ShmemMapping, ...], tuple[ShmemMapping, ...]]
"""For a successor: what is mapped, and what may be."""


class ShmemTable:
    """The mappings of one session. `sizes` are the regions' in bytes, by id.

    `doubtful` are places where there may be something that nobody knows of: an answer did not come,
    or came for who is gone. They are to be emptied before anything else. `under_way` is the place
    that the front-end is asked about, and `resets` counts the device's, each of which empties all.
    """

    def __init__(self) -> None:
        self.sizes: Mapping[int, int] = {}
        self.mapped: list[ShmemMapping] = []
        self.doubtful: list[ShmemMapping] = []
        self.under_way: ShmemMapping | None = None
        self.resets = 0

    def map_problem(self, mapping: ShmemMapping) -> str:
        """Why nothing can be mapped there, or ""."""
        if problem := place_problem(self.sizes, mapping):
            return problem
        if len(self.mapped) >= MAPPINGS_MAX:
            return f"{MAPPINGS_MAX} mappings are there already"
        for other in self.mapped:
            if _overlap(mapping, other):
                place = f"{other.offset:#x}+{other.length:#x}"
                return f"{place} is mapped in region {other.region} already"
        return ""

    def unmap_problem(self, mapping: ShmemMapping) -> str:
        """Why that is no mapping to be taken away, or ""."""
        if any(_same(mapping, other) for other in self.mapped):
            return ""
        place = f"{mapping.offset:#x}+{mapping.length:#x}"
        return f"{place} is no mapping of region {mapping.region}"

    def add(self, mapping: ShmemMapping) -> None:
        """It is there."""
        self.mapped.append(mapping)

    def remove(self, mapping: ShmemMapping) -> None:
        """It is not there, as far as anybody knows."""
        self.mapped = [other for other in self.mapped if not _same(mapping, other)]
        self.doubtful = [other for other in self.doubtful if not _same(mapping, other)]

    def doubt(self, mapping: ShmemMapping) -> None:
        """It may be there."""
        self.remove(mapping)
        self.doubtful.append(mapping)

    def forget(self) -> None:
        """Nothing is mapped: the device was reset, or the front-end has gone."""
        self.mapped, self.doubtful = [], []
        self.resets += 1

    def known(self) -> Known:
        """For `restore`. What is under way is in doubt for whoever reads this."""
        doubtful = list(self.doubtful)
        if self.under_way is not None:
            doubtful.append(self.under_way)
        mapped = [m for m in self.mapped if not any(_same(m, other) for other in doubtful)]
        return tuple(mapped), tuple(doubtful)

    def restore(self, known: Known) -> None:
        """What a predecessor knew."""
        self.mapped, self.doubtful = list(known[0]), list(known[1])


def _same(one: ShmemMapping, other: ShmemMapping) -> bool:
    return (one.region, one.offset, one.length) == (other.region, other.offset, other.length)


def _overlap(one: ShmemMapping, other: ShmemMapping) -> bool:
    return one.region == other.region and one.offset < other.end and other.offset < one.end
