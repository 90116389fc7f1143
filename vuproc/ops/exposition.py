"""The text that is scraped (OpenMetrics 1.0), in pieces: the master's loop has its turn between any
two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vuproc.ops.metric_table import METRICS, DeviceLook, Metric, QueueLook, Sample, escaped

END = "# EOF\n"


def pieces(
    look_at_device: Callable[[], DeviceLook], look_at_queues: Iterator[QueueLook]
) -> Iterator[str]:
    """The whole text; each piece costs some ten microseconds, or one look at a queue."""
    device = look_at_device()
    of_device = f'device="{escaped(device.name)}"'
    queues: list[QueueLook] = []
    for queue in look_at_queues:
        queues.append(queue)
        yield ""
    labels = [f'{of_device},queue="{queue.queue}"' for queue in queues]
    for metric in METRICS:
        yield _head(metric)
        if metric.of_device is not None:
            yield _lines(metric, of_device, metric.of_device(device))
        if metric.of_queue is not None:
            for queue, own in zip(queues, labels, strict=True):
                yield _lines(metric, own, metric.of_queue(queue))
    yield END


def _head(metric: Metric) -> str:
    unit = f"# UNIT {metric.name} {metric.unit}\n" if metric.unit else ""
    return f"# TYPE {metric.name} {metric.type}\n{unit}# HELP {metric.name} {metric.help}\n"


def _lines(metric: Metric, labels: str, samples: Iterable[Sample]) -> str:
    name = metric.name
    return "".join(
        f"{name}{suffix}{{{labels}{more}}} {value!r}\n" for suffix, more, value in samples
    )
