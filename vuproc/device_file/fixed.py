"""Options that every device has, and a class may decide on: how many queues, and how large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vuproc import place
from vuproc.device import Device
from vuproc.options import MAX_QUEUES, MIN_QUEUE_SIZE
from vuproc.spec.virtio import QUEUE_SIZE_MAX


class Fixed(NamedTuple):
    """One such option."""

    attribute: str
    """The class attribute which fixes it; None there leaves it to the device file."""
    bounds: tuple[int, int]
    power_of_two: bool
    words: str
    """How an error says it, with the value for {}."""


FIXED: Mapping[str, Fixed] = {
    "queues": Fixed("queues", (1, MAX_QUEUES), False, "this device has {} queues"),
    "queue_size": Fixed(
        "largest_queue",
        (MIN_QUEUE_SIZE, QUEUE_SIZE_MAX),
        True,
        "the queues of this device have up to {} entries",
    ),
}
"""The options, by name."""


def fixed_options(device: type[Device]) -> dict[str, str]:
    """The options that a class leaves nothing to say of, and why, in words."""
    found = dict(device.options_type.superseded)
    for option, fixed in FIXED.items():
        value = getattr(device, fixed.attribute)
        if value is not None:
            words = fixed.words.format(value)
            found[option] = words.replace("1 queues", "1 queue") if value == 1 else words
    return found


def fixed_problems(device: type[Device]) -> Iterator[str]:
    """Yield what is wrong with the attributes."""
    for fixed in FIXED.values():
        value: object = getattr(device, fixed.attribute)
        least, most = fixed.bounds
        if value is None or (
            type(value) is int
            and least <= value <= most
            and not (fixed.power_of_two and value & (value - 1))
        ):
            continue
        wanted = f"{least} to {most}"
        if fixed.power_of_two:
            wanted = f"a power of two from {wanted}"
        text = f"{fixed.attribute} is {place.shown(value)}, not {wanted}"
        yield place.about(device, fixed.attribute, text)
