"""Whether a class can serve as a device: what would fail later, or be ignored, said at once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import get_args

from vuproc import place
from vuproc.device import Device, Resubmit
from vuproc.device_description import DeviceDescription
from vuproc.device_file.fixed import fixed_problems
from vuproc.device_file.options_class import options_problems
from vuproc.mapping import MappingDevice, regions_problem
from vuproc.options import MAX_QUEUES

_OURS_TO_DEFINE = frozenset(
    {
        "watch",
        "unwatch",
        "call_soon",
        "call_later",
        "call_every",
        "config_changed",
        "take",
    }
)
"""Methods which a device calls; the others are called by vuproc."""
STATE_VERSION_MAX = (1 << 32) - 1
"""The largest `state_version`."""
MAY_BE_ASYNC = "handle"
"""The one method that may be an `async def`."""


def _hooks() -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(inspect.signature(value).parameters)[1:]
        for name, value in {**vars(DeviceDescription), **vars(Device)}.items()
        if inspect.isfunction(value)
        and (name == "__init__" or not name.startswith("_"))
        and name not in _OURS_TO_DEFINE
    }


HOOKS: Mapping[str, tuple[str, ...]] = MappingProxyType(_hooks())
"""What vuproc calls on a device, with the names of what it passes, by position."""


def class_problems(device: type[Device], *, made: bool = False) -> Iterator[str]:
    """Yield each thing wrong with a class and with its options, after the line it stands in.

    `made`: an object of it is there, and vuproc makes no other.
    """
    for name, passed in HOOKS.items():
        if made and name == "__init__":
            continue
        if inspect.getattr_static(device, name) is not inspect.getattr_static(Device, name):
            problem = _hook_problem(device, name, passed)
            if problem:
                yield place.about(device, name, f"{name} {problem}")
    problem = _resubmit_problem(device.resubmit)
    if problem:
        yield place.about(device, "resubmit", problem)
    yield from _state_problems(device)
    if issubclass(device, MappingDevice) and (problem := regions_problem(device.shared_memory)):
        yield place.about(device, "shared_memory", f"shared_memory {problem}")
    yield from fixed_problems(device)
    yield from _unused_options(device)
    yield from options_problems(device.options_type)


def _hook_problem(device: type[Device], name: str, passed: tuple[str, ...]) -> str | None:
    raw = inspect.getattr_static(device, name)
    function = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw
    wanted = f"def {name}({', '.join(('self', *passed))})"
    if not callable(function):
        what = "a property" if isinstance(raw, property) else place.shown(raw)
        return f"is {what}, not a method; write {wanted}"
    is_coroutine = inspect.iscoroutinefunction(function)
    if inspect.isasyncgenfunction(function) or (is_coroutine and name != MAY_BE_ASYNC):
        return f"is async, which only handle may be, and without a yield; write {wanted}"
    if inspect.isgeneratorfunction(function) and not _may_yield(name):
        return "has a yield, so that a call of it does nothing; let it return"
    try:
        own = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # native code need not say
    # As it is called: an instance, or the class, comes first.
    first = () if isinstance(raw, staticmethod) or not hasattr(raw, "__get__") else (device,)
    try:
        own.bind(*first, *passed)
    except TypeError:
        signature = f"def {name}{own}"
        return f"does not take what it is called with: it is {signature}; write {wanted}"
    return None


def _resubmit_problem(resubmit: object) -> str | None:
    choices = get_args(Resubmit)
    wanted = " or ".join((", ".join(choices[:-1]), choices[-1]))
    if not isinstance(resubmit, Mapping):
        if resubmit in choices:
            return None
        return f"resubmit is {place.shown(resubmit)}, not {wanted}, nor a mapping of queues to them"
    for queue, choice in resubmit.items():
        if type(queue) is not int or not 0 <= queue < MAX_QUEUES:
            return f"resubmit names a queue {place.shown(queue)}, not 0 to {MAX_QUEUES - 1}"
        if choice not in choices:
            return f"resubmit is {place.shown(choice)} for queue {queue}, not {wanted}"
    return None


def _state_problems(device: type[Device]) -> Iterator[str]:
    """A state that is saved is to be loaded, and of a version that fits into its header."""
    save, load = (
        inspect.getattr_static(device, name) is not inspect.getattr_static(Device, name)
        for name in ("save_state", "load_state")
    )
    if save != load:
        there, missing = ("save_state", "load_state") if save else ("load_state", "save_state")
        yield place.about(device, there, f"{there} is of no use without {missing}")
    version: object = device.state_version
    if type(version) is not int or not 0 < version <= STATE_VERSION_MAX:
        text = f"state_version is {place.shown(version)}, not 1 to {STATE_VERSION_MAX}"
        yield place.about(device, "state_version", text)


def _may_yield(name: str) -> bool:
    """Whether what the method returns is iterated over, and no more."""
    return "Iter" in str(inspect.signature(inspect.getattr_static(Device, name)).return_annotation)


def _unused_options(device: type[Device]) -> Iterator[str]:
    """`options: MyOptions` does not choose the struct: `options_type` does."""
    for owner in device.__mro__[: device.__mro__.index(Device)]:
        wanted = place.annotations_of(owner).get("options")
        if isinstance(wanted, str):
            wanted = getattr(sys.modules.get(owner.__module__), wanted, None)
        if isinstance(wanted, type) and not issubclass(device.options_type, wanted):
            used = device.options_type.__name__
            text = f"options is of type {wanted.__name__}, but options_type is {used}"
            advice = f"write options_type = {wanted.__name__}"
            yield place.about(device, "options", f"{text}; {advice}")
            return
