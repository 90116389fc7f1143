"""What is seen of a device that is served: numbers for scrapes and `vuproc stats`, the last events,
and the last requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from vuproc import __version__, events
from vuproc.events import (
    AnyEvent,
    Connected,
    Disconnected,
    Migration,
    Reloaded,
    RingBroken,
    WorkerDied,
    WorkerReplaced,
)
from vuproc.fd import Fd
from vuproc.handover.device_counters import DeviceCounters
from vuproc.log_formats import event_name
from vuproc.master import Master
from vuproc.ops.admin import AdminError, Request, Verb
from vuproc.ops.exposition import pieces
from vuproc.ops.file_sizes import file_sizes
from vuproc.ops.in_flight import InFlight
from vuproc.ops.metric_table import DeviceLook, QueueLook
from vuproc.ops.stats import QueueStats, Stats
from vuproc.ops.trace_file import TraceFile


class Observation:
    """Sees one device, whose counters it keeps of what the master alone knows.

    A chore of the master's loop. `files` are those that the workers share, `state_of` tells the
    state of a queue.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        master: Master,
        counters: DeviceCounters,
        traces: TraceFile,
        files: Callable[[], Mapping[str, Fd]],
        state_of: Callable[[int], str],
    ) -> None:
        self._name = name
        self._kind = kind
        self._master = master
        self._counters = counters
        self._traces = traces
        self._files = files
        self._state_of = state_of
        self._in_flight = InFlight(master.pool.history)
        self._started = time.time()
        self._logging = False
        self._over = False
        for slot in master.pool.slots:
            slot.look = self._serving
        events.listen(self._happened)

    def verbs(self) -> dict[str, Verb]:
        """Name to function, for the admin server."""
        return {"stats": self.stats, "events": self.events, "trace": self.trace}

    # Numbers.

    def page(self) -> Iterator[str]:
        """The text of a scrape, in pieces."""
        return pieces(self._look_at_device, map(self._look_at, range(self._queues)))

    def stats(self, _request: Request) -> dict[str, Any]:
        """Everything of `vuproc.ops.stats.Stats`."""
        device = self._look_at_device()
        looks = [self._look_at(queue) for queue in range(self._queues)]
        stats = Stats(
            device=self._kind,
            at=time.monotonic(),
            connected=device.connected,
            counters=device.counters._asdict(),
            queues=[
                QueueStats(
                    queue=look.queue,
                    state=look.state,
                    in_flight=look.in_flight,
                    oldest_s=look.oldest_s,
                    counters=look.counters.counters(),
                    latency=list(look.counters.latency),
                )
                for look in looks
            ],
            traced=self._traces.file is not None,
            files={file.name: [file.size, file.allocated] for file in device.files},
        )
        return msgspec.to_builtins(stats)  # type: ignore[no-any-return]

    @property
    def _queues(self) -> int:
        return len(self._counters.of_workers)

    def _look_at(self, queue: int) -> QueueLook:
        in_flight, oldest_s = self._in_flight.look(queue)
        counters = self._counters.snapshot(queue)
        return QueueLook(queue, counters, self._state_of(queue), in_flight, oldest_s)

    def _look_at_device(self) -> DeviceLook:
        return DeviceLook(
            name=self._name,
            type=self._kind,
            version=__version__,
            started=self._started,
            connected=self._master.session is not None,
            counters=self._counters.of_device(),
            files=file_sizes(self._files()),
        )

    # Events.

    def events(self, request: Request) -> dict[str, Any]:
        """The events after a number, 0 for all that are there, and how many of them are not."""
        found, lost = self._counters.events.since(request.after or 0)
        return {"events": found, "lost": lost, "last": self._counters.events.last}

    def _happened(self, event: AnyEvent) -> None:
        if self._over:
            return  # what is left to tell is told by the end of the process
        match event:
            case Connected():
                self._counters.count("connections")
            case Disconnected(ours=True):
                self._counters.count("disconnects")
            case Reloaded(ok=ok):
                self._counters.count("reloads" if ok else "failed_reloads")
            case WorkerDied(queues=queues):
                for queue in queues:
                    self._counters.of_workers[queue].count_restart()
            case WorkerReplaced(queues=queues, stall_s=stall_s):
                for queue in queues:
                    self._counters.of_workers[queue].count_stall(round(stall_s * 1e9))
            case RingBroken(queue=queue):
                self._counters.of_workers[queue].count_break()
        self._counters.count("events")
        fields = msgspec.to_builtins(event)
        del fields["type"]
        name = event_name(event)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._counters.events.add(
            {"time": now.replace("+00:00", "Z"), "event": name, "text": str(event), **fields}
        )

    def _serving(self, queues: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """The queue and head of each request that is in the device's code."""
        busy = ((queue, self._counters.of_workers[queue].busy()) for queue in queues)
        return tuple((queue, word - 1) for queue, word in busy if word)

    # Requests.

    def trace(self, request: Request) -> dict[str, Any]:
        """The last requests of a queue, oldest first; times are ns before now."""
        queue = request.queue
        if queue is None or not 0 <= queue < self._queues:
            raise AdminError(f"no queue {queue}: there are {self._queues}")
        if self._traces.file is None:
            raise AdminError("nothing is traced: `trace: 64` below `device:`, and a reload, do it")
        workers, requests = self._traces.read(queue)
        found = [{**entry._asdict(), "first": entry.first.hex()} for entry in requests]
        now = time.monotonic_ns()
        return {"device": self._kind, "now": now, "workers": workers, "requests": found}

    # The chore.

    def due(self) -> float | None:
        """Nothing is waited for."""
        return None

    def tend(self) -> None:
        """Note whether the front-end migrates: its writes are logged, or not any more."""
        session = self._master.session
        logging = session is not None and session.state.logging.area is not None
        if logging != self._logging:
            self._logging = logging
            events.publish(Migration(logging=logging))

    def close(self) -> None:
        """The loop is over."""
        self._over = True
