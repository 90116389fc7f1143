"""Whether a device describes itself within what virtio and vhost-user allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vuproc.device import Device
from vuproc.options import MAX_QUEUE_SIZE, MAX_QUEUES, MIN_QUEUE_SIZE

MAX_CONFIG_SPACE = 4084
"""Bytes: a GET_CONFIG payload of 4096 less its own header of 12 (vhost-user)."""
DEVICE_FEATURES = (1 << 24) - 1 | ((1 << 64) - 1) ^ ((1 << 50) - 1)
"""Bits a device type may use, 0 to 23 and 50 to 63: the others are the ring's (virtio 1.3, 2.2)."""


def description_problems(device: Device) -> Iterator[str]:
    """Yield each thing wrong with what the device says of itself; its code may do anything."""
    count = device.num_queues()
    size = device.queue_size()
    if type(count) is not int or not 1 <= count <= MAX_QUEUES:
        yield f"num_queues() is {count!r}, not 1 to {MAX_QUEUES}"
    else:
        groups = device.queue_groups()
        for _, message in grouping_problems(groups, [(queue,) for queue in range(count)]):
            yield f"queue_groups() is {groups!r}: {message}"
    if type(size) is not int or not MIN_QUEUE_SIZE <= size <= MAX_QUEUE_SIZE or size & (size - 1):
        bounds = f"{MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE}"
        yield f"queue_size() is {size!r}, not a power of two from {bounds}"
    features = device.offered_features()
    if not isinstance(features, int) or features & ~DEVICE_FEATURES:
        yield f"offered_features() is {features!r}: a device has bits 0 to 23 and 50 to 63"
    config: object = device.config_space()
    if not isinstance(config, bytes):
        yield f"config_space() is of type {type(config).__name__}, not bytes"
    elif len(config) > MAX_CONFIG_SPACE:
        yield f"config_space() has {len(config)} bytes, more than {MAX_CONFIG_SPACE}"


def grouping_problems(
    groups: Iterable[Sequence[int]], units: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, int] | None, str]]:
    """Check that `groups` hold every queue once and keep each of `units` together.

    Yields ((group, position) or None for the whole, message).
    """
    queues = {queue for unit in units for queue in unit}
    home: dict[int, int] = {}
    for number, group in enumerate(groups):
        for position, queue in enumerate(group):
            if queue not in queues:
                yield (number, position), f"the device has no queue {queue}; {_span(len(queues))}"
            elif queue in home:
                yield (number, position), f"queue {queue} is named twice"
            else:
                home[queue] = number
    missing = sorted(queues - home.keys())
    if missing:
        yield None, f"{_queues(missing)} missing: every queue needs a worker"
    for unit in units:
        if len({home[queue] for queue in unit if queue in home}) > 1:
            yield None, f"queues {', '.join(map(str, unit))} must share a worker on this device"


def _span(count: int) -> str:
    return "its only queue is 0" if count == 1 else f"its queues are 0 to {count - 1}"


def _queues(numbers: list[int]) -> str:
    noun = "queue" if len(numbers) == 1 else "queues"
    verb = "is" if len(numbers) == 1 else "are"
    return f"{noun} {', '.join(map(str, numbers))} {verb}"
