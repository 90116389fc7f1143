"""Whether a device describes itself within what virtio and vhost-user allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from vuproc import place
from vuproc.device import Device
from vuproc.options import MAX_QUEUES, MIN_QUEUE_SIZE, Options
from vuproc.spec.vhost_user import CONFIG_SIZE_MAX
from vuproc.spec.virtio import QUEUE_SIZE_MAX, Feature

DEVICE_FEATURES = (1 << 24) - 1 | Feature.IN_ORDER | ((1 << 64) - 1) ^ ((1 << 50) - 1)
"""Bits a device type may use: 0 to 23 and 50 to 63 (virtio 1.3, 2.2), and IN_ORDER, since it is the
device that knows its order. The others are the ring's.
"""


def description_problems(device: Device) -> Iterator[str]:
    """Yield each thing wrong with what the device says of itself, after the line it stands in.

    The device's code may do anything.
    """
    for name, problem in _QUESTIONS.items():
        try:
            text = problem(device)
            if text:
                yield place.about(type(device), name, text, *_DECIDED_BY.get(name, ()))
        except (Exception, SystemExit) as error:
            text = place.raised(type(device), name, error)
            yield text
        if text and name == "num_queues":
            return  # without it, little can be said of the rest


def ignored(device: Device, option: str) -> bool:
    """Whether the device has so many queues, or queues so large, whatever the option says."""
    method, least, most = OPTIONAL[option]
    says = getattr(device, method)()
    if says == getattr(device.options, option):
        return False
    try:
        return all(
            getattr(type(device)(_replaced(device, option, other)), method)() == says
            for other in (least, most)
        )
    except (Exception, SystemExit):
        return False  # it does look at it


def _count_problem(device: Device) -> str | None:
    count: object = device.num_queues()
    if type(count) is not int or not 1 <= count <= MAX_QUEUES:
        return f"num_queues() is {place.shown(count)}, not 1 to {MAX_QUEUES}"
    return None


def _size_problem(device: Device) -> str | None:
    size: object = device.queue_size()
    if type(size) is int and MIN_QUEUE_SIZE <= size <= QUEUE_SIZE_MAX and not size & (size - 1):
        return None
    bounds = f"{MIN_QUEUE_SIZE} to {QUEUE_SIZE_MAX}"
    return f"queue_size() is {place.shown(size)}, not a power of two from {bounds}"


def _groups_problem(device: Device) -> str | None:
    groups: object = device.queue_groups()
    shown = f"queue_groups() is {place.shown(groups)}"
    if not isinstance(groups, list | tuple) or not all(map(_is_group, groups)):
        return f"{shown}, not a list with a tuple of queues for each worker, such as [(0, 1), (2,)]"
    units = [(queue,) for queue in range(device.num_queues())]
    return next((f"{shown}: {text}" for _, text in grouping_problems(groups, units)), None)


def _is_group(group: object) -> bool:
    return isinstance(group, list | tuple) and bool(group) and all(type(q) is int for q in group)


def _features_problem(device: Device) -> str | None:
    features: object = device.offered_features()
    if isinstance(features, int) and not features & ~int(DEVICE_FEATURES):
        return None
    allowed = "a device has bits 0 to 23, 35 (IN_ORDER) and 50 to 63"
    return f"offered_features() is {place.shown(features)}: {allowed}"


def _config_problem(device: Device) -> str | None:
    config: object = device.config_space()
    if not isinstance(config, bytes):
        return f"config_space() is of type {type(config).__name__}, not bytes"
    if len(config) > CONFIG_SIZE_MAX:
        return f"config_space() has {len(config)} bytes, more than {CONFIG_SIZE_MAX}"
    return None


_QUESTIONS: Mapping[str, Callable[[Device], str | None]] = {
    "num_queues": _count_problem,
    "queue_groups": _groups_problem,
    "queue_size": _size_problem,
    "offered_features": _features_problem,
    "config_space": _config_problem,
}
"""What the master asks a device -> what is wrong with the answer."""
_DECIDED_BY: Mapping[str, tuple[str, ...]] = {"offered_features": ("features",)}
"""The methods whose answer is a class attribute unless a class overrides them."""
OPTIONAL: Mapping[str, tuple[str, int, int]] = {
    "queues": ("num_queues", 1, MAX_QUEUES),
    "queue_size": ("queue_size", MIN_QUEUE_SIZE, QUEUE_SIZE_MAX),
}
"""The options of every device -> the method that may take no notice, and the option's bounds."""


def _replaced(device: Device, option: str, value: int) -> Options:
    return msgspec.structs.replace(device.options, **{option: value})


def units_of(device: Device, *, postcopy: bool) -> list[tuple[int, ...]]:
    """The queues which must share a worker: as the device says, or, for a userfaultfd belongs to
    one address space, all of them.
    """
    if postcopy:
        return [tuple(range(device.num_queues()))]
    return [tuple(group) for group in device.queue_groups()]


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
