"""Every metric: one row each, in the words of OpenMetrics. The exposition, its manual, and the test
of the dashboard and of the alert rules follow.

Names have base units, `_total` is added to a counter's sample by the exposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from vuproc.handover.device_words import DEVICE_WORDS, DeviceSnapshot
from vuproc.shm.counter_table import NS, WORDS, CountersSnapshot, Word

PREFIX = "vuproc_"
BUCKETS = 31
"""Buckets of a histogram below +Inf: the last of the counters' has no upper bound."""
STATES = ("stopped", "running", "disabled", "waiting", "broken")
"""Of a queue, as `vuproc status` has them."""
CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_HELP = {
    "errors": "What failed, by kind: device, in the device's code; skipped, not run again; call, a "
    "notification; ring_broken, the whole ring",
    "reloads": "Rolling restarts of reloads, by how they ended",
}
"""Of families that several words share."""


class QueueLook(Struct, frozen=True):
    """What is known of one queue at a moment."""

    queue: int
    counters: CountersSnapshot
    state: str
    in_flight: int
    oldest_s: float


class FileSize(NamedTuple):
    """A file that the device's workers share, such as a disk's image, in bytes."""

    name: str
    size: int
    allocated: int


class DeviceLook(Struct, frozen=True):
    """What is known of the device itself."""

    name: str
    type: str
    version: str
    started: float
    """Seconds since the epoch: this master's start."""
    connected: bool
    counters: DeviceSnapshot
    files: tuple[FileSize, ...]


class Sample(NamedTuple):
    """`labels` beside the device's, as they are written; `suffix` is after the family's name."""

    suffix: str
    labels: str
    value: float


class Metric(Struct, frozen=True):
    """One family. `labels` are for the manual; samples come of a look at a queue or the device."""

    name: str
    type: Literal["counter", "gauge", "histogram", "summary", "stateset", "info"]
    help: str
    labels: tuple[str, ...]
    of_queue: Callable[[QueueLook], Iterable[Sample]] | None = None
    of_device: Callable[[DeviceLook], Iterable[Sample]] | None = None

    @property
    def unit(self) -> str:
        """The unit, which the name ends with; "" if it has none."""
        last = self.name.rpartition("_")[2]
        return last if last in ("seconds", "bytes") else ""

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that its samples have."""
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
            "summary": ("_count", "_sum"),
            "info": ("_info",),
        }.get(self.type, ("",))
        return tuple(f"{self.name}{suffix}" for suffix in suffixes)


def _words(words: dict[str, Word]) -> Iterator[tuple[str, list[tuple[str, Word]]]]:
    """The words of each family, in the order of the table."""
    families: dict[str, list[tuple[str, Word]]] = {}
    for name, word in words.items():
        if word.metric:
            families.setdefault(word.metric, []).append((name, word))
    yield from families.items()


def _kind(word: Word, name: str) -> str:
    return f',{name}="{word.kind}"' if word.kind else ""


def _of_words(words: dict[str, Word], *, queue: bool, label: str) -> Iterator[Metric]:
    for family, rows in _words(words):
        word = rows[0][1]
        values = _Values(
            tuple(
                (name, "_total" if row.counter else "", _kind(row, label), row.scale)
                for name, row in rows
            )
        )
        yield Metric(
            PREFIX + family,
            "counter" if word.counter else "gauge",
            _HELP.get(family) or word.help[0].upper() + word.help[1:],
            (("queue",) if queue else ()) + ((label,) if word.kind else ()),
            of_queue=values if queue else None,
            of_device=None if queue else values,
        )


class _Values(Struct, frozen=True):
    """Samples of counters: name of the word, suffix, labels and scale of each."""

    parts: tuple[tuple[str, str, str, float], ...]

    def __call__(self, look: QueueLook | DeviceLook) -> list[Sample]:
        return [
            Sample(suffix, labels, getattr(look.counters, name) * scale)
            for name, suffix, labels, scale in self.parts
        ]


_BOUNDS = tuple(f',le="{(1 << (bucket + 1)) * NS:.9g}"' for bucket in range(BUCKETS))


def _latency(look: QueueLook) -> list[Sample]:
    latency, samples, reached = look.counters.latency, [], 0
    for bucket, bound in enumerate(_BOUNDS):
        reached += latency[bucket]
        samples.append(Sample("_bucket", bound, reached))
    # Not `requests`: the words are not read together, and these must agree with each other.
    total = reached + sum(latency[BUCKETS:])
    samples.append(Sample("_bucket", ',le="+Inf"', total))
    samples.append(Sample("_count", "", total))
    samples.append(Sample("_sum", "", look.counters.latency_total_ns * NS))
    return samples


def _stalls(look: QueueLook) -> list[Sample]:
    counters = look.counters
    return [
        Sample("_count", "", counters.stalls),
        Sample("_sum", "", counters.stall_total_ns * NS),
    ]


def _states(look: QueueLook) -> list[Sample]:
    return [
        Sample("", f',{PREFIX}queue_state="{state}"', int(state == look.state)) for state in STATES
    ]


def _info(look: DeviceLook) -> list[Sample]:
    return [Sample("_info", f',type="{escaped(look.type)}",version="{look.version}"', 1)]


def escaped(text: str) -> str:
    """A text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


QUEUE = ("queue",)

METRICS: tuple[Metric, ...] = (
    *_of_words(WORDS, queue=True, label="kind"),
    Metric(
        f"{PREFIX}request_duration_seconds",
        "histogram",
        "Time of requests in the device, from fetch to completion; bounds are powers of two of ns",
        (*QUEUE, "le"),
        of_queue=_latency,
    ),
    Metric(
        f"{PREFIX}recovery_stall_seconds",
        "summary",
        "Time from a worker's end, as it was noticed, until another serves its queues",
        QUEUE,
        of_queue=_stalls,
    ),
    Metric(
        f"{PREFIX}in_flight_requests",
        "gauge",
        "Requests that the device has and has not completed, by the in-flight record",
        QUEUE,
        of_queue=lambda look: [Sample("", "", look.in_flight)],
    ),
    Metric(
        f"{PREFIX}in_flight_oldest_seconds",
        "gauge",
        "For how long the oldest of them is known to be in flight: from the first scrape that saw "
        "it on",
        QUEUE,
        of_queue=lambda look: [Sample("", "", look.oldest_s)],
    ),
    Metric(
        f"{PREFIX}queue_state",
        "stateset",
        "State of the queue, as in vuproc status",
        (*QUEUE, f"{PREFIX}queue_state"),
        of_queue=_states,
    ),
    Metric(
        f"{PREFIX}device",
        "info",
        "The device: its type, and the version of vuproc",
        ("type", "version"),
        of_device=_info,
    ),
    Metric(
        f"{PREFIX}frontend_connected",
        "gauge",
        "1 while a front-end is connected",
        (),
        of_device=lambda look: [Sample("", "", int(look.connected))],
    ),
    Metric(
        f"{PREFIX}master_start_time_seconds",
        "gauge",
        "Start of the master, in seconds since 1970",
        (),
        of_device=lambda look: [Sample("", "", look.started)],
    ),
    *_of_words(DEVICE_WORDS, queue=False, label="result"),
    Metric(
        f"{PREFIX}file_allocated_bytes",
        "gauge",
        "Bytes that the file system has allocated for a file of the device, such as a disk's image",
        ("file",),
        of_device=lambda look: [
            Sample("", f',file="{escaped(file.name)}"', file.allocated) for file in look.files
        ],
    ),
    Metric(
        f"{PREFIX}file_size_bytes",
        "gauge",
        "Size of a file of the device",
        ("file",),
        of_device=lambda look: [
            Sample("", f',file="{escaped(file.name)}"', file.size) for file in look.files
        ],
    ),
)
"""In the order of the exposition."""


def metrics_markdown() -> str:
    """The rows, as a list for a reference page."""
    lines = []
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        names = ", ".join(f"`{name}`" for name in metric.samples)
        head = f"* {names} ({metric.type}{f'; {labels}' if labels else ''}):"
        first, *more = _wrapped(head, 100)
        lines += [first, *(f"  {line}" for line in [*more, *_wrapped(f"{metric.help}.")])]
    return "\n".join(lines)


def _wrapped(text: str, width: int = 98) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
