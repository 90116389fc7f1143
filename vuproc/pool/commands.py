"""The session's effects as commands for one worker, with the descriptors that go beside them."""

from __future__ import annotations

from collections.abc import Sequence

from vuproc.fd import Fd, FdKind
from vuproc.vhost_user import effects
from vuproc.vhost_user.effects import Effect
from vuproc.workers import control
from vuproc.workers.control import AnyCommand

Prepared = tuple[AnyCommand, tuple[Fd, ...]]
"""A command and its descriptors, which stay their owner's."""


def prepared(effect: Effect) -> Prepared:
    """An effect that one command carries out; ValueError if there is none such."""
    match effect:
        case effects.SetFeatures(features=features):
            return control.SetFeatures(features=features), ()
        case effects.SetMemory(regions=regions):
            command = control.SetMemory(regions=tuple(_wire(region) for region in regions))
            return command, tuple(region.fd for region in regions)
        case effects.AddRegion(region=region):
            return control.AddRegion(region=_wire(region)), (region.fd,)
        case effects.RemoveRegion(region=region):
            key = {"guest_addr": region.guest_addr, "size": region.size}
            return control.RemoveRegion(user_addr=region.user_addr, **key), ()
        case effects.StopRing(index=index):
            return control.StopRing(queue=index), ()
        case effects.EnableRing(index=index, enabled=enabled):
            return control.EnableRing(queue=index, enabled=enabled), ()
        case effects.SetKick(index=index, fd=fd):
            return control.SetKick(queue=index), _present(fd)
        case effects.SetCall(index=index, fd=fd):
            return control.SetCall(queue=index), _present(fd)
        case effects.SetErr(index=index, fd=fd):
            return control.SetErr(queue=index), _present(fd)
        case effects.ResetDevice():
            return control.ResetDevice(), ()
        case _:
            raise ValueError(f"{type(effect).__name__} is not for workers")


def start_ring(setup: effects.RingSetup, record: Fd, offset: int, base: int | None) -> Prepared:
    """Start a ring with its in-flight record at `offset` of `record`.

    `base` is where the driver had it begin, for an empty record; None: where the ring stopped.
    """
    command = control.StartRing(
        queue=setup.index,
        size=setup.size,
        desc=setup.desc,
        avail=setup.avail,
        used=setup.used,
        base=base,
        enabled=setup.enabled,
        record_offset=offset,
        kick=setup.kick is not None,
        call=setup.call is not None,
        err=setup.err is not None,
    )
    return command, (record, *_present(setup.kick, setup.call, setup.err))


def regions_of(effect: Effect) -> tuple[effects.Region, ...]:
    """The regions which an effect adds to the table."""
    if isinstance(effect, effects.SetMemory):
        return effect.regions
    return (effect.region,) if isinstance(effect, effects.AddRegion) else ()


def undo_memory(
    effect: effects.SetMemory | effects.AddRegion | effects.RemoveRegion,
    committed: Sequence[Effect],
) -> Prepared:
    """The command that takes a memory change back: the table of the committed state."""
    if isinstance(effect, effects.AddRegion):
        return prepared(effects.RemoveRegion(effect.region))
    regions = [region for old in committed for region in regions_of(old)]
    return prepared(effects.SetMemory(tuple(regions)))


def truncation(region: effects.Region) -> str | None:
    """What the region's file lacks by now, in words; None if it is whole or has no size."""
    size, end = region.fd.size, region.mmap_offset + region.size
    if size >= end or (size == 0 and region.fd.kind is not FdKind.FILE):
        return None
    return f"region at {region.guest_addr:#x} needs {end:#x} bytes, its file has {size:#x}"


def _wire(region: effects.Region) -> control.Region:
    return control.Region(region.guest_addr, region.size, region.user_addr, region.mmap_offset)


def _present(*fds: Fd | None) -> tuple[Fd, ...]:
    return tuple(fd for fd in fds if fd is not None)
