"""What the messages about rings do to the state: pure, as `handlers`.

And what other messages do with rings: `start_covered`, once there is memory, and `stop_all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from vuproc.errors import MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.spec.vhost_user import (
    VRING_ADDR_F_LOG,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    VRING_STATE,
    FrontendRequest,
    ProtocolFeature,
)
from vuproc.spec.virtio import QUEUE_SIZE_MAX
from vuproc.vhost_user.change import Change, Fds, Fields, Handler
from vuproc.vhost_user.effects import (
    Effect,
    EnableRing,
    EndTransfer,
    KickRing,
    LogUsedRing,
    SetCall,
    SetErr,
    SetKick,
    StartRing,
    StopRing,
)
from vuproc.vhost_user.memory_table import user_of
from vuproc.vhost_user.state import Offer, State
from vuproc.vhost_user.vring import Addresses, Vring

LARGER_QUEUES = (
    "raise queue_size in the device file, or have the VMM's device take queues of {0} entries "
    "(QEMU: queue-size={0})"
)
"""What to do about a ring that is too large; takes the device's queue_size."""
NO_MEMORY = "vring {} is set up, but the front-end has shared no guest memory"
"""Why a ring waits; takes its index."""


# ---- helpers -------------------------------------------------------------------------------------


def _ring(state: State, index: int) -> Vring:
    """The one check of a ring index, on its full width and before any use."""
    if index >= len(state.rings):
        raise MessageRefused(f"vring {index} is out of range, the device has {len(state.rings)}")
    return state.rings[index]


def _refuse_if_running(ring: Vring, what: str) -> None:
    if ring.live:
        raise MessageRefused(f"{what} of vring {ring.index} cannot change while it runs")


def _start_if_ready(state: State, ring: Vring, *, base_needed: bool = True) -> Change:
    """Put `ring` into the state, and start it if the message was the last that it waited for.

    Any order of NUM, BASE, ADDR and KICK is legal. Without a memory table the ring waits for one;
    with a table that does not cover it, the message which completes it is refused. Where an IOMMU
    has put it is for its worker to ask, which may have to wait for the answer.
    """
    ready = ring.placed and not ring.started and (ring.base_known or not base_needed)
    if not (ready and state.regions and ring.addresses is not None):
        doubt = NO_MEMORY.format(ring.index) if ready and not state.regions else ""
        return Change(state=state.with_ring(ring), doubt=doubt)
    layout = state.layout
    if not state.translated:
        ring.addresses.check_covered(layout, state.regions, ring.size)
    record = state.inflight.record(layout, ring.index, ring.size) if state.inflight else None
    ring = replace(ring, started=True, inflight=record)
    effects: tuple[Effect, ...] = (StartRing(ring.setup()),)
    if state.transferring:
        state, effects = replace(state, transferring=False), (*effects, EndTransfer())
    return Change(state=state.with_ring(ring), effects=effects)


def start_covered(state: State, effects: tuple[Effect, ...]) -> Change:
    """Start every ring that waited for nothing but memory."""
    for ring in state.rings:
        try:
            change = _start_if_ready(state, ring)
        except MessageRefused:
            continue  # still not covered; its own next message says so
        state, effects = change.state, effects + change.effects
    return Change(state=state, effects=effects)


def stop_all(state: State) -> tuple[State, tuple[Effect, ...], tuple[int, ...]]:
    """Every ring stopped; the effects that do it and the rings that they concern."""
    stopping = tuple(ring.index for ring in state.started)
    for ring in state.rings:
        state = state.with_ring(ring.stopped())
    return state, tuple(StopRing(index) for index in stopping), stopping


# ---- rings ---------------------------------------------------------------------------------------


def _set_vring_num(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, num = _ring(state, fields["index"]), fields["num"]
    limit = min(offer.queue_size, QUEUE_SIZE_MAX)
    problem = state.layout.size_problem(num) if num <= QUEUE_SIZE_MAX else None
    if problem is not None:
        raise MessageRefused(problem)
    if num > limit:
        raise MessageRefused(f"ring size {num} is above {limit}; {LARGER_QUEUES.format(limit)}")
    _refuse_if_running(ring, "the size")
    return _reconfigured(state, ring, size=num)


def _set_vring_addr(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring = _ring(state, fields["index"])
    if fields["flags"] & ~VRING_ADDR_F_LOG:
        raise MessageRefused(f"unknown flags {fields['flags']:#x}")
    desc, used, avail = (fields[area] for area in ("desc", "used", "avail"))
    if state.protocol_features & ProtocolFeature.XEN_MMAP:
        desc, used, avail = (user_of(state.regions, each) for each in (desc, used, avail))
    addresses = Addresses(
        desc=desc,
        used=used,
        avail=avail,
        flags=fields["flags"],
        log=fields["log"],
    )
    addresses.check_alignment(state.layout)
    addresses.check_log(state.layout, ring.size or 1)
    if ring.live and ring.addresses is not None and addresses.same_place(ring.addresses):
        # Only the logging of a ring may change while it runs.
        effects: tuple[Effect, ...] = ()
        if addresses.used_log != ring.addresses.used_log:
            effects = (LogUsedRing(ring.index, addresses.used_log),)
        return Change(state=state.with_ring(replace(ring, addresses=addresses)), effects=effects)
    _refuse_if_running(ring, "the addresses")
    if state.regions and not state.translated:
        addresses.check_covered(state.layout, state.regions, ring.size or 1)
    return _reconfigured(state, ring, addresses=addresses)


def _set_vring_base(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, base = _ring(state, fields["index"]), fields["num"]
    if base > state.layout.base_max:
        raise MessageRefused(f"base {base:#x} is above {state.layout.base_max:#x}")
    if ring.live and not ring.base_known and base == ring.base:
        # Started by SET_VRING_ENABLE from the initial base, which this only confirms.
        return Change(state=state.with_ring(replace(ring, base_known=True)))
    _refuse_if_running(ring, "the base")
    return _reconfigured(state, ring, base=base, base_known=True)


def _reconfigured(state: State, ring: Vring, **changes: Any) -> Change:
    if not ring.broken:
        return _start_if_ready(state, replace(ring, **changes))
    # A broken ring that is set up anew has to stop first, and starts by its next kick.
    return Change(
        state=state.with_ring(replace(ring.stopped(), **changes)),
        effects=(StopRing(ring.index),),
        rebased=() if "base" in changes else (ring.index,),
    )


def _get_vring_base(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """ "The back-end must finish in-flight requests first", now that there is a message of its own
    for a stop without that, with feature 23. Before, feature 20 alone had this one mean it: so does
    QEMU 11.1. And yc-libvhost-server's front-ends say it by a `num` of 1.
    """
    features = state.protocol_features
    leaves = features & ProtocolFeature.GET_VRING_BASE_INFLIGHT and (
        fields["num"] == 1 or not features & ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    )
    return _stopped(state, fields["index"], drains=not leaves)


def _get_vring_base_skip_drain(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return _stopped(state, fields["index"], drains=False)


def _stopped(state: State, index: int, *, drains: bool) -> Change:
    ring = _ring(state, index)

    def answer(after: State, results: Sequence[object]) -> bytes:
        return VRING_STATE.pack(index=index, num=after.rings[index].base)

    # The call descriptor goes too: the front-end sends a new one before it starts the ring again.
    stopped = state.with_ring(replace(ring.stopped(), call=None, muted=False))
    if not ring.started:
        return Change(state=stopped, answer=answer)
    # Out of a record that the front-end does not have, it would take nothing along.
    effect = StopRing(index, drains=drains or ring.inflight is None)
    return Change(state=stopped, effects=(effect,), rebased=(index,), answer=answer)


def _set_vring_kick(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, fd = _ring_and_fd(state, fields, fds)
    if ring.started:
        effects: tuple[Effect, ...] = (SetKick(ring.index, fd),) if ring.live else ()
        return Change(state=state.with_ring(_kicked_by(ring, fd)), effects=effects)
    return _start_if_ready(state, replace(_kicked_by(ring, fd), kicked=True))


def _kicked_by(ring: Vring, fd: Fd | None) -> Vring:
    return replace(ring, kick=fd, polled=fd is None)


def _set_vring_call(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, fd = _ring_and_fd(state, fields, fds)
    effects: tuple[Effect, ...] = (SetCall(ring.index, fd),) if ring.live else ()
    return Change(state=state.with_ring(replace(ring, call=fd, muted=fd is None)), effects=effects)


def _set_vring_err(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, fd = _ring_and_fd(state, fields, fds)
    effects: tuple[Effect, ...] = (SetErr(ring.index, fd),) if ring.live else ()
    return Change(state=state.with_ring(replace(ring, err=fd)), effects=effects)


def _ring_and_fd(state: State, fields: Fields, fds: Fds) -> tuple[Vring, Fd | None]:
    value: int = fields["value"]
    if value & ~(VRING_INDEX_MASK | VRING_NO_FD):
        raise MessageRefused(f"unknown bits in {value:#x}")
    ring = _ring(state, value & VRING_INDEX_MASK)
    if value & VRING_NO_FD:
        return ring, None  # one that came nevertheless is closed
    if not fds:
        raise MessageRefused(f"no descriptor came for vring {ring.index}")
    return ring, bell_of(fds[0])


def bell_of(fd: Fd) -> Fd:
    """MessageRefused unless it is something to signal somebody with."""
    if fd.kind not in (FdKind.EVENTFD, FdKind.PIPE, FdKind.SOCKET):
        raise MessageRefused("the descriptor is no eventfd, pipe or socket")
    if fd.kind is FdKind.SOCKET and not fd.paired:
        raise MessageRefused("the descriptor is a socket with an address, not one of a pair")
    return fd


def _set_vring_enable(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    ring, num = _ring(state, fields["index"]), fields["num"]
    if num > 1:
        raise MessageRefused(f"enable is 0 or 1, not {num}")
    enabled = num == 1
    changed = ring.enabled != enabled
    ring = replace(ring, enabled=enabled)
    if ring.started:
        effects = (EnableRing(ring.index, enabled),) if ring.live and changed else ()
        return Change(state=state.with_ring(ring), effects=effects)
    if enabled:
        if ring.bells is not None:
            # User-Mode Linux sends no SET_VRING_KICK then; others may, and it counts afterwards.
            ring = replace(ring, kicked=True)
        # A front-end that never sends a base means the initial one.
        return _start_if_ready(state, ring, base_needed=False)
    return Change(state=state.with_ring(ring))


def _vring_kick(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """In-band: "the ring is also started on the VRING_KICK message".

    Not a disabled one, for a late kick must not run a ring again that was stopped: as it starts
    when it is enabled, and is looked at then, nothing is lost.
    """
    ring, num = _ring(state, fields["index"]), fields["num"]
    if num:
        raise MessageRefused(f"num is reserved, and not {num}")
    if not ring.started:
        if not ring.enabled:
            return Change(state=state)
        return _start_if_ready(state, replace(ring, kicked=True), base_needed=False)
    kick = ring.kick_used
    if kick is None or not ring.live:
        return Change(state=state)
    return Change(state=state, effects=(KickRing(ring.index, kick),))


RING_HANDLERS: dict[FrontendRequest, Handler] = {
    FrontendRequest.SET_VRING_NUM: _set_vring_num,
    FrontendRequest.SET_VRING_ADDR: _set_vring_addr,
    FrontendRequest.SET_VRING_BASE: _set_vring_base,
    FrontendRequest.GET_VRING_BASE: _get_vring_base,
    FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: _get_vring_base_skip_drain,
    FrontendRequest.SET_VRING_KICK: _set_vring_kick,
    FrontendRequest.SET_VRING_CALL: _set_vring_call,
    FrontendRequest.SET_VRING_ERR: _set_vring_err,
    FrontendRequest.SET_VRING_ENABLE: _set_vring_enable,
    FrontendRequest.VRING_KICK: _vring_kick,
}
"""The part of `HANDLERS` that is about rings."""
