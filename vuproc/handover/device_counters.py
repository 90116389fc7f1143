"""All that is counted of one device, by its workers and its masters: it never goes back while the
device is served, whoever dies.

It lies in one segment. Its front is what workers map, a block a queue; behind that, for the master
alone, are a block a queue with what was counted under the masters before, some words of the
device's, and the last events. A successor makes a segment of its own, adds up what it has been
left, and has that kept in place of it: an instant at which both are stored is no harm, since the
newer one counts, and holds all that the other does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vuproc.fd import Fd
from vuproc.handover.device_words import DEVICE_WORDS, DeviceSnapshot
from vuproc.handover.event_log import LOG_BYTES, EventLog
from vuproc.handover.fd_store import COUNTERS, FdStore
from vuproc.shm.counter_table import WORDS, CountersSnapshot
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.segment import Segment

log = logging.getLogger("vuproc.master")

_WORDS_BYTES = 512
_MAX_GENERATION = 1 << 32


class DeviceCounters:
    """The counters of a device with so many queues. `of_workers[i]` are those of queue i since this
    master's start, as its worker has them, and `name` is by which it finds them.
    """

    def __init__(self, name: str, queues: int, fd_store: FdStore) -> None:
        """Make them. Raises SegmentInUse or SegmentUnavailable."""
        self._fd_store = fd_store
        blocks = block_bytes(queues)
        self._segment = Segment.create(name, blocks, blocks + _WORDS_BYTES + LOG_BYTES)
        self._file: Fd | None = None
        behind = self._segment.behind
        self.name = name
        self.of_workers = [QueueCounters(self._segment, queue) for queue in range(queues)]
        self._before = [QueueCounters(behind[:blocks], queue) for queue in range(queues)]
        self._words = behind[blocks : blocks + _WORDS_BYTES].cast("Q")
        self.events = EventLog(behind[blocks + _WORDS_BYTES :])
        self._generation = 1

    def go_on(self) -> None:
        """Add what a predecessor has left, of whom no worker counts any more, and have the sum kept
        for a successor.
        """
        left = self._fd_store.take_all(COUNTERS)
        try:
            newest = max(left, key=lambda kept: _generation(kept[0]), default=None)
            if newest is not None:
                self._generation = _generation(newest[0]) + 1
                self._add(newest[1])
                self.count("takeovers")
            self._file = self._segment.file()
            self._fd_store.keep(f"{COUNTERS}{self._generation}", self._file)
            for name, _ in left:
                self._fd_store.notifier.remove(name)
        except OSError as error:
            log.warning("counters are not kept for a successor: %s", error.strerror)
        finally:
            for _, file in left:
                file.close()

    def snapshot(self, queue: int) -> CountersSnapshot:
        """One queue's values; what grows, with what was counted under the masters before."""
        now, before = self.of_workers[queue].snapshot(), self._before[queue].snapshot()
        sums = {
            name: getattr(now, name) + getattr(before, name)
            for name, word in WORDS.items()
            if word.counter
        }
        latency = tuple(map(sum, zip(now.latency, before.latency, strict=True)))
        last = now.stall_last_ns if now.stalls else before.stall_last_ns
        return now._replace(**sums, latency=latency, stall_last_ns=last)

    def of_device(self) -> DeviceSnapshot:
        """What the masters have counted."""
        return DeviceSnapshot(*(self._words[word.place] for word in DEVICE_WORDS.values()))

    def count(self, name: str) -> None:
        """Count one more in a word of the device's."""
        self._words[DEVICE_WORDS[name].place] += 1

    def close(self) -> None:
        """Unmap and remove them. Those that workers have go with the workers."""
        for counters in (*self.of_workers, *self._before):
            counters.release()
        self._words.release()
        self.events.close()
        self._segment.unlink()
        self._segment.close()
        if self._file is not None:
            self._file.close()

    def _add(self, file: Fd) -> None:
        try:
            left = Segment.left(file)
        except (ValueError, OSError) as error:
            log.warning("what was counted before is lost: %s", error)
            return
        with left:
            queues = left.size // block_bytes(1)
            if len(left.behind) != left.size + _WORDS_BYTES + LOG_BYTES:
                log.warning("what was counted before is lost: of another layout")
                return
            for ours, parts in zip(self._before, _blocks(left, queues), strict=False):
                for part in parts:
                    ours.add_counts(part)
                    part.release()
            words = left.behind[left.size : left.size + _WORDS_BYTES].cast("Q")
            for word in DEVICE_WORDS.values():
                self._words[word.place] += words[word.place]
            words.release()
            self.events.go_on(left.behind[left.size + _WORDS_BYTES :])


def _blocks(left: Segment, queues: int) -> Sequence[tuple[QueueCounters, QueueCounters]]:
    """Of each queue, what was counted last and what before."""
    before = left.behind[: left.size]
    return [(QueueCounters(left, queue), QueueCounters(before, queue)) for queue in range(queues)]


def _generation(name: str) -> int:
    number = name.removeprefix(COUNTERS)
    usable = number.isascii() and number.isdecimal() and len(number) < 10
    return min(int(number), _MAX_GENERATION) if usable else 0
