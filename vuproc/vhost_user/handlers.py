"""What each front-end message does to the state: one function a message, all of them pure.

A handler gets the state before, the offer, the payload's fields and the message's descriptors. It
returns a `Change` or raises `MessageRefused`; it closes nothing and carries nothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from vuproc.errors import CloseConnection, MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.spec.net import MAC_BYTES, MTU_MAX, MTU_MIN
from vuproc.spec.ring_layout import record_room
from vuproc.spec.vhost_user import (
    CONFIG_HEADER,
    INFLIGHT,
    LOG,
    PAYLOAD_MAX,
    U64,
    VRING_ADDR_F_LOG,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    VRING_STATE,
    FrontendRequest,
    ProtocolFeature,
)
from vuproc.spec.virtio import QUEUE_SIZE_MAX, STATUS_MAX, Feature, Status
from vuproc.vhost_user.dirty_log import make_log_area
from vuproc.vhost_user.effects import (
    AddRegion,
    Announce,
    Effect,
    EnableRing,
    FindObject,
    KickRing,
    LogUsedRing,
    MakeBells,
    MakeInflight,
    ReadConfig,
    RemoveRegion,
    ResetDevice,
    SetBackendChannel,
    SetCall,
    SetErr,
    SetFeatures,
    SetKick,
    SetMemory,
    SetMtu,
    StartRing,
    StopRing,
    WriteConfig,
)
from vuproc.vhost_user.inflight_region import check_extent
from vuproc.vhost_user.inflight_region import make_region as make_inflight_region
from vuproc.vhost_user.memory_table import (
    TABLE_REGIONS_MAX,
    check_disjoint,
    make_region,
    same_place,
)
from vuproc.vhost_user.state import Offer, State, extra_bits
from vuproc.vhost_user.vring import Addresses, Vring

CONFIG_FLAGS_MAX = 3
"""SET_CONFIG: 0 and 1 are QEMU's kinds of write; rust-vmm calls them 1 and 2 and may set both."""

LARGER_QUEUES = (
    "raise queue_size in the device file, or have the VMM's device take queues of {0} entries "
    "(QEMU: queue-size={0})"
)
"""What to do about a ring that is too large; takes the device's queue_size."""
NO_MEMORY = "vring {} is set up, but the front-end has shared no guest memory"
"""Why a ring waits; takes its index."""

Fields = Mapping[str, Any]
Fds = tuple[Fd, ...]
Answer = Callable[[State, Sequence[object]], bytes]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one message is to bring about once every effect has succeeded.

    `rebased`: the rings whose base becomes the result of their StopRing. `answer`: makes the
    message's own reply from the new state and the effects' results; None: only an ack, if any.
    `doubt`: why nothing will come of it, unless the front-end does what few do later than this.
    """

    state: State
    effects: tuple[Effect, ...] = ()
    rebased: tuple[int, ...] = ()
    answer: Answer | None = None
    doubt: str = ""


Handler = Callable[[State, Offer, Fields, Fds], Change]


# ---- helpers -------------------------------------------------------------------------------------


def _value(number: int) -> Answer:
    return lambda state, results: U64.pack(value=number)


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
    with a table that does not cover it, the message which completes it is refused.
    """
    ready = ring.placed and not ring.started and (ring.base_known or not base_needed)
    if not (ready and state.regions and ring.addresses is not None):
        doubt = NO_MEMORY.format(ring.index) if ready and not state.regions else ""
        return Change(state=state.with_ring(ring), doubt=doubt)
    layout = state.layout
    ring.addresses.check_covered(layout, state.regions, ring.size)
    record = state.inflight.record(layout, ring.index, ring.size) if state.inflight else None
    ring = replace(ring, started=True, inflight=record)
    return Change(state=state.with_ring(ring), effects=(StartRing(ring.setup()),))


def _start_covered(state: State, effects: tuple[Effect, ...]) -> Change:
    """Start every ring that waited for nothing but memory."""
    for ring in state.rings:
        try:
            change = _start_if_ready(state, ring)
        except MessageRefused:
            continue  # still not covered; its own next message says so
        state, effects = change.state, effects + change.effects
    return Change(state=state, effects=effects)


def _stop_all(state: State) -> tuple[State, tuple[Effect, ...], tuple[int, ...]]:
    """Every ring stopped; the effects that do it and the rings that they concern."""
    stopping = tuple(ring.index for ring in state.started)
    for ring in state.rings:
        state = state.with_ring(ring.stopped())
    return state, tuple(StopRing(index) for index in stopping), stopping


# ---- negotiation ---------------------------------------------------------------------------------


def _get_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.features))


def _set_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    features: int = fields["value"]
    extra = extra_bits(features, offer.features)
    if extra:
        raise MessageRefused(f"features {extra:#x} were not offered")
    before, state = state, replace(state, features=features)
    if state.started and state.ring_features != (before.ring_features or 0):
        raise MessageRefused("features cannot change while rings run")
    effects: tuple[Effect, ...] = ()
    if state.ring_features is not None and state.ring_features != before.ring_features:
        effects = (SetFeatures(state.ring_features),)
    effects += _log_change(before, state)
    if not features & Feature.PROTOCOL_FEATURES:
        # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the rings start enabled."
        for ring in state.rings:
            if ring.live and not ring.enabled:
                effects += (EnableRing(ring.index, True),)
            state = state.with_ring(replace(ring, enabled=True))
    return Change(state=state, effects=effects)


def _get_protocol_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.protocol_features))


def _set_protocol_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    wanted: int = fields["value"]
    needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
    if wanted & ProtocolFeature.INBAND_NOTIFICATIONS and wanted & needed != needed:
        # "If INBAND_NOTIFICATIONS is negotiated without these two, the back-end must close."
        raise CloseConnection("in-band notifications without BACKEND_REQ and REPLY_ACK")
    extra = extra_bits(wanted, offer.protocol_features)
    if extra:
        raise MessageRefused(f"protocol features {extra:#x} were not offered")
    return _with_bells(state, wanted)


def _with_bells(state: State, protocol_features: int) -> Change:
    """The state with these protocol features, and with bells if they have in-band notifications."""
    state = replace(state, protocol_features=protocol_features)
    wanted = bool(protocol_features & ProtocolFeature.INBAND_NOTIFICATIONS)
    if wanted == any(ring.bells for ring in state.rings):
        return Change(state=state)
    if state.started:
        raise MessageRefused("in-band notifications cannot change while rings run")
    if wanted:
        return Change(state=state, effects=(MakeBells(len(state.rings)),))
    rings = tuple(replace(ring, bells=None) for ring in state.rings)
    return Change(state=replace(state, rings=rings))


def _set_owner(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    if state.owned:
        raise MessageRefused("the session has an owner already")
    return Change(state=replace(state, owned=True))


def _reset_owner(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Deprecated: disable all rings and keep the session, as the specification recommends."""
    state, effects, stopping = _stop_all(state)
    rings = tuple(replace(ring, enabled=False) for ring in state.rings)
    return Change(state=replace(state, rings=rings, owned=False), effects=effects, rebased=stopping)


def _get_queue_num(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.num_queues))


def _set_backend_req_fd(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    (fd,) = fds
    if not fd.paired:
        raise MessageRefused("the back-end channel is no socket of a pair")
    return Change(state=replace(state, backend_channel=fd), effects=(SetBackendChannel(fd),))


# ---- memory --------------------------------------------------------------------------------------


def _set_mem_table(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    items = fields["items"]
    limit = min(TABLE_REGIONS_MAX, offer.max_regions)
    if len(items) != len(fds):
        raise MessageRefused(f"{len(items)} regions came with {len(fds)} descriptors")
    if not 0 < len(items) <= limit:
        raise MessageRefused(f"{len(items)} regions, 1 to {limit} are allowed")
    regions = tuple(make_region(item, fd) for item, fd in zip(items, fds, strict=True))
    check_disjoint(regions)
    return _start_covered(replace(state, regions=regions), (SetMemory(regions),))


def _get_max_mem_slots(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.max_regions))


def _add_mem_reg(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    if len(state.regions) >= offer.max_regions:
        raise MessageRefused(f"all {offer.max_regions} memory slots are taken")
    region = make_region(fields, fds[0])
    regions = (*state.regions, region)
    check_disjoint(regions)
    return _start_covered(replace(state, regions=regions), (AddRegion(region),))


def _rem_mem_reg(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    region = next((known for known in state.regions if same_place(known, fields)), None)
    if region is None:
        raise MessageRefused(f"no such region at {fields['guest_addr']:#x}")
    regions = tuple(known for known in state.regions if known is not region)
    return Change(state=replace(state, regions=regions), effects=(RemoveRegion(region),))


# ---- dirty log -----------------------------------------------------------------------------------


def _log_change(before: State, after: State) -> tuple[Effect, ...]:
    """What workers must hear if they are to mark pages somewhere else from now on, or nowhere."""
    return () if after.logging == before.logging else (after.logging,)


def _set_log_base(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Another log may come while the one before is written to: the guest has more memory then."""
    if not state.protocol_features & ProtocolFeature.LOG_SHMFD or "mmap_size" not in fields:
        # Without LOG_SHMFD it is an address in the front-end.
        raise MessageRefused("a dirty log that is not shared by LOG_SHMFD cannot be written to")
    if not fds:
        raise MessageRefused("no descriptor came with the dirty log")
    after = replace(state, log=make_log_area(fields, fds[0]))

    def answer(after: State, results: Sequence[object]) -> bytes:
        # The specification names no payload: the same 16 bytes are what every front-end takes.
        return LOG.pack(mmap_size=fields["mmap_size"], mmap_offset=fields["mmap_offset"])

    return Change(state=after, effects=_log_change(state, after), answer=answer)


def _set_log_fd(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    after = replace(state, log_call=_bell(fds[0]))
    return Change(state=after, effects=_log_change(state, after))


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
    addresses = Addresses(
        desc=fields["desc"],
        used=fields["used"],
        avail=fields["avail"],
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
    if state.regions:
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
    ring = _ring(state, fields["index"])

    def answer(after: State, results: Sequence[object]) -> bytes:
        return VRING_STATE.pack(index=ring.index, num=after.rings[ring.index].base)

    # The call descriptor goes too: the front-end sends a new one before it starts the ring again.
    stopped = state.with_ring(replace(ring.stopped(), call=None, muted=False))
    if not ring.started:
        return Change(state=stopped, answer=answer)
    return Change(
        state=stopped, effects=(StopRing(ring.index),), rebased=(ring.index,), answer=answer
    )


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
    return ring, _bell(fds[0])


def _bell(fd: Fd) -> Fd:
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


# ---- in-flight I/O -------------------------------------------------------------------------------


def _get_inflight_fd(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Nothing of it stays here: the front-end hands the region back by SET_INFLIGHT_FD."""
    num_queues, queue_size = fields["num_queues"], fields["queue_size"]
    limit = min(offer.queue_size, QUEUE_SIZE_MAX)
    if queue_size > limit:
        advice = LARGER_QUEUES.format(limit)
        raise MessageRefused(f"queue size {queue_size} is above {limit}; {advice}")
    check_extent(num_queues, queue_size, queues_max=offer.num_queues, size_max=limit)
    # In whatever layout: the driver may not have chosen yet, and firmware not what the guest will.
    room = record_room(offer.features, queue_size)

    def answer(after: State, results: Sequence[object]) -> bytes:
        (made,) = results
        assert isinstance(made, tuple)
        return INFLIGHT.pack(mmap_size=made[1], num_queues=num_queues, queue_size=queue_size)

    return Change(state=state, effects=(MakeInflight(num_queues, room),), answer=answer)


def _set_inflight_fd(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """For the rings that start from now on; QEMU sends it before the memory table."""
    region = make_inflight_region(state.layout, fields, fds[0], offer.num_queues)
    return _start_covered(replace(state, inflight=region), ())


# ---- shared objects ------------------------------------------------------------------------------


def _get_shared_object(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """The descriptor comes with the answer, which is empty; without one, there is no such object.

    QEMU 10.2 does not say which: none is that.
    """
    uuid: bytes = fields.get("uuid", b"")
    effects = (FindObject(uuid),) if any(uuid) else ()
    return Change(state=state, effects=effects, answer=lambda state, results: b"")


# ---- network devices -----------------------------------------------------------------------------


def _net_set_mtu(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Outlives a reset: the front-end's user has chosen it, not the driver."""
    mtu: int = fields["value"]
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise MessageRefused(f"MTU {mtu} is not {MTU_MIN} to {MTU_MAX}")
    if mtu == state.mtu:
        return Change(state=state)
    return Change(state=replace(state, mtu=mtu), effects=(SetMtu(mtu),))


def _send_rarp(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    mac = U64.pack(value=fields["value"])[:MAC_BYTES]
    return Change(state=state, effects=(Announce(mac),))


# ---- device --------------------------------------------------------------------------------------


def _get_config(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Any range is answered at full length: QEMU's idea of the config size grows with versions."""
    offset, size = fields["offset"], fields["size"]
    if offset + size > PAYLOAD_MAX:
        raise MessageRefused(f"config bytes {offset}+{size} are absurd")
    inside = min(size, max(0, offer.config_size - offset))

    def answer(after: State, results: Sequence[object]) -> bytes:
        data = results[0] if results and isinstance(results[0], bytes) else b""
        head = CONFIG_HEADER.pack(offset=offset, size=size, flags=fields["flags"])
        return head + data[:inside].ljust(size, b"\0")

    effects = (ReadConfig(offset, inside),) if inside else ()
    return Change(state=state, effects=effects, answer=answer)


def _set_config(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    offset, data, flags = fields["offset"], fields["data"], fields["flags"]
    if flags > CONFIG_FLAGS_MAX:
        raise MessageRefused(f"unknown flags {flags:#x}")
    if offset + len(data) > offer.config_size:
        raise MessageRefused(f"bytes {offset}+{len(data)} of {offer.config_size} bytes of config")
    effects = (WriteConfig(offset, data, flags),) if data else ()
    return Change(state=state, effects=effects)


def _set_status(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    status: int = fields["value"]
    if status > STATUS_MAX:
        raise MessageRefused(f"status {status:#x} is above {STATUS_MAX:#x}")
    if status:
        # Only a reset takes this bit away (virtio 1.3 section 2.1.2).
        kept = state.status & Status.NEEDS_RESET
        return Change(state=replace(state, status=status | kept))
    # QEMU 7.2 writes 0 before it asks for the bases of a guest that is merely paused: keep them.
    stopped, effects, stopping = _stop_all(state)
    after = replace(stopped, features=None, status=0)
    return Change(
        state=after,
        effects=(*effects, *_log_change(state, after), ResetDevice()),
        rebased=stopping,
    )


def _get_status(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(state.status))


def _reset_device(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Back to the beginning, save for the owner, the protocol features and what is in memory: the
    table and the dirty log, which waits for its feature.

    The in-flight region goes: what it says of the requests before the reset must not come back.
    """
    _, effects, _ = _stop_all(state)
    rings = tuple(
        Vring(index=r.index, call=r.call, err=r.err, bells=r.bells, muted=r.muted)
        for r in state.rings
    )
    after = replace(state, rings=rings, features=None, status=0, inflight=None)
    return Change(state=after, effects=(*effects, *_log_change(state, after), ResetDevice()))


HANDLERS: dict[FrontendRequest, Handler] = {
    FrontendRequest.GET_FEATURES: _get_features,
    FrontendRequest.SET_FEATURES: _set_features,
    FrontendRequest.SET_OWNER: _set_owner,
    FrontendRequest.RESET_OWNER: _reset_owner,
    FrontendRequest.SET_MEM_TABLE: _set_mem_table,
    FrontendRequest.SET_LOG_BASE: _set_log_base,
    FrontendRequest.SET_LOG_FD: _set_log_fd,
    FrontendRequest.SET_VRING_NUM: _set_vring_num,
    FrontendRequest.SET_VRING_ADDR: _set_vring_addr,
    FrontendRequest.SET_VRING_BASE: _set_vring_base,
    FrontendRequest.GET_VRING_BASE: _get_vring_base,
    FrontendRequest.SET_VRING_KICK: _set_vring_kick,
    FrontendRequest.SET_VRING_CALL: _set_vring_call,
    FrontendRequest.SET_VRING_ERR: _set_vring_err,
    FrontendRequest.GET_PROTOCOL_FEATURES: _get_protocol_features,
    FrontendRequest.SET_PROTOCOL_FEATURES: _set_protocol_features,
    FrontendRequest.GET_QUEUE_NUM: _get_queue_num,
    FrontendRequest.SET_VRING_ENABLE: _set_vring_enable,
    FrontendRequest.VRING_KICK: _vring_kick,
    FrontendRequest.SET_BACKEND_REQ_FD: _set_backend_req_fd,
    FrontendRequest.GET_CONFIG: _get_config,
    FrontendRequest.SET_CONFIG: _set_config,
    FrontendRequest.GET_INFLIGHT_FD: _get_inflight_fd,
    FrontendRequest.SET_INFLIGHT_FD: _set_inflight_fd,
    FrontendRequest.RESET_DEVICE: _reset_device,
    FrontendRequest.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
    FrontendRequest.ADD_MEM_REG: _add_mem_reg,
    FrontendRequest.REM_MEM_REG: _rem_mem_reg,
    FrontendRequest.SET_STATUS: _set_status,
    FrontendRequest.GET_SHARED_OBJECT: _get_shared_object,
    FrontendRequest.NET_SET_MTU: _net_set_mtu,
    FrontendRequest.SEND_RARP: _send_rarp,
    FrontendRequest.GET_STATUS: _get_status,
}
"""Every message that is served; the table knows the others, which are refused."""
