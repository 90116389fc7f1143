"""What each front-end message does to the state: one function a message, all of them pure.

A handler gets the state before, the offer, the payload's fields and the message's descriptors. It
returns a `Change` or raises `MessageRefused`; it closes nothing and carries nothing out.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from vuproc.errors import CloseConnection, MessageRefused
from vuproc.mapping import REGIONS_MAX
from vuproc.spec.net import MAC_BYTES, MTU_MAX, MTU_MIN
from vuproc.spec.vhost_user import (
    CONFIG_HEADER,
    LOG,
    PAYLOAD_MAX,
    SHMEM_CONFIG,
    U64,
    FrontendRequest,
    ProtocolFeature,
)
from vuproc.spec.virtio import STATUS_MAX, Feature, Status
from vuproc.vhost_user.change import Answer, Change, Fds, Fields, Handler
from vuproc.vhost_user.dirty_log import make_log_area
from vuproc.vhost_user.effects import (
    AddRegion,
    Announce,
    Effect,
    EnableRing,
    FindObject,
    MakeBells,
    ReadConfig,
    RemoveRegion,
    ResetDevice,
    SetBackendChannel,
    SetDisplay,
    SetFeatures,
    SetMemory,
    SetMtu,
    WriteConfig,
)
from vuproc.vhost_user.inflight_handlers import INFLIGHT_HANDLERS
from vuproc.vhost_user.iotlb import IOTLB_HANDLERS, check_can_miss
from vuproc.vhost_user.memory_table import (
    TABLE_REGIONS_MAX,
    addresses_of,
    check_disjoint,
    make_region,
    same_place,
)
from vuproc.vhost_user.postcopy_handlers import POSTCOPY_HANDLERS, guard_table, stage_table
from vuproc.vhost_user.ring_handlers import RING_HANDLERS, bell_of, start_covered, stop_all
from vuproc.vhost_user.state import Offer, Postcopy, State, extra_bits
from vuproc.vhost_user.transfer_handlers import TRANSFER_HANDLERS, keeps_its_state
from vuproc.vhost_user.vring import Vring

CONFIG_FLAGS_MAX = 3
"""SET_CONFIG: 0 and 1 are QEMU's kinds of write; rust-vmm calls them 1 and 2 and may set both."""


def _value(number: int) -> Answer:
    return lambda state, results: U64.pack(value=number)


# ---- negotiation ---------------------------------------------------------------------------------


def _get_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.features))


def _set_features(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    features: int = fields["value"]
    extra = extra_bits(features, offer.features)
    if extra:
        raise MessageRefused(f"features {extra:#x} were not offered")
    check_can_miss(features, state.protocol_features)
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
    state, effects, stopping = stop_all(state)
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
    if state.staged:
        return guard_table(state, fields, fds)
    items = [addresses_of(item, state.protocol_features) for item in fields["items"]]
    limit = min(TABLE_REGIONS_MAX, offer.max_regions)
    if len(items) != len(fds):
        raise MessageRefused(f"{len(items)} regions came with {len(fds)} descriptors")
    if not 0 < len(items) <= limit:
        raise MessageRefused(f"{len(items)} regions, 1 to {limit} are allowed")
    regions = tuple(
        make_region(item, fd, state.protocol_features) for item, fd in zip(items, fds, strict=True)
    )
    check_disjoint(regions)
    if state.postcopy is Postcopy.LISTENING:
        return stage_table(state, regions, fields)
    return start_covered(replace(state, regions=regions), (SetMemory(regions),))


def _get_max_mem_slots(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(offer.max_regions))


def _add_mem_reg(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    if len(state.regions) >= offer.max_regions:
        raise MessageRefused(f"all {offer.max_regions} memory slots are taken")
    wanted = addresses_of(fields, state.protocol_features)
    region = make_region(wanted, fds[0], state.protocol_features)
    regions = (*state.regions, region)
    check_disjoint(regions)
    return start_covered(replace(state, regions=regions), (AddRegion(region),))


def _rem_mem_reg(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    wanted = addresses_of(fields, state.protocol_features)
    region = next((known for known in state.regions if same_place(known, wanted)), None)
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
    after = replace(state, log_call=bell_of(fds[0]))
    return Change(state=after, effects=_log_change(state, after))


# ---- shared objects and memory -------------------------------------------------------------------


def _get_shared_object(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """The descriptor comes with the answer, which is empty; without one, there is no such object.

    QEMU 10.2 does not say which: none is that.
    """
    uuid: bytes = fields.get("uuid", b"")
    effects = (FindObject(uuid),) if any(uuid) else ()
    return Change(state=state, effects=effects, answer=lambda state, results: b"")


def _get_shmem_config(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """The sizes are constant for a connection; 0 is a region that is not there."""
    sizes = tuple(offer.shared_memory.get(region, 0) for region in range(REGIONS_MAX))
    answer = SHMEM_CONFIG.pack(nregions=len(offer.shared_memory), sizes=sizes)
    return Change(state=state, answer=lambda state, results: answer)


# ---- network devices -----------------------------------------------------------------------------


def _net_set_mtu(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Outlives a reset: the front-end's user has chosen it, not the driver."""
    mtu: int = fields["value"]
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise MessageRefused(f"MTU {mtu} is not {MTU_MIN} to {MTU_MAX}")
    if mtu == state.mtu:
        return Change(state=state)
    return Change(state=replace(state, mtu=mtu), effects=(SetMtu(mtu),))


def _gpu_set_socket(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """On a socket of its own the device says what is shown; no feature is negotiated for it."""
    (fd,) = fds
    if not offer.display:
        raise MessageRefused("the device has no display")
    if not fd.paired:
        raise MessageRefused("the display is no socket of a pair")
    return Change(state=replace(state, display=fd), effects=(SetDisplay(fd),))


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
    stopped, effects, stopping = stop_all(state)
    after = replace(stopped, features=None, status=0)
    keeps = keeps_its_state(state)
    after = replace(after, transferring=keeps and state.transferring)
    return Change(
        state=after,
        effects=(*effects, *_log_change(state, after), ResetDevice(keeps)),
        rebased=stopping,
    )


def _get_status(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    return Change(state=state, answer=_value(state.status))


def _reset_device(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Back to the beginning, save for the owner, the protocol features and what is in memory: the
    table and the dirty log, which waits for its feature.

    The in-flight region goes: what it says of the requests before the reset must not come back.
    """
    _, effects, _ = stop_all(state)
    rings = tuple(
        Vring(index=r.index, call=r.call, err=r.err, bells=r.bells, muted=r.muted)
        for r in state.rings
    )
    after = replace(state, rings=rings, features=None, status=0, inflight=None, transferring=False)
    return Change(state=after, effects=(*effects, *_log_change(state, after), ResetDevice()))


HANDLERS: dict[FrontendRequest, Handler] = {
    **RING_HANDLERS,
    **INFLIGHT_HANDLERS,
    **TRANSFER_HANDLERS,
    **IOTLB_HANDLERS,
    **POSTCOPY_HANDLERS,
    FrontendRequest.GET_FEATURES: _get_features,
    FrontendRequest.SET_FEATURES: _set_features,
    FrontendRequest.SET_OWNER: _set_owner,
    FrontendRequest.RESET_OWNER: _reset_owner,
    FrontendRequest.SET_MEM_TABLE: _set_mem_table,
    FrontendRequest.SET_LOG_BASE: _set_log_base,
    FrontendRequest.SET_LOG_FD: _set_log_fd,
    FrontendRequest.GET_PROTOCOL_FEATURES: _get_protocol_features,
    FrontendRequest.SET_PROTOCOL_FEATURES: _set_protocol_features,
    FrontendRequest.GET_QUEUE_NUM: _get_queue_num,
    FrontendRequest.SET_BACKEND_REQ_FD: _set_backend_req_fd,
    FrontendRequest.GET_CONFIG: _get_config,
    FrontendRequest.SET_CONFIG: _set_config,
    FrontendRequest.RESET_DEVICE: _reset_device,
    FrontendRequest.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
    FrontendRequest.ADD_MEM_REG: _add_mem_reg,
    FrontendRequest.REM_MEM_REG: _rem_mem_reg,
    FrontendRequest.SET_STATUS: _set_status,
    FrontendRequest.GET_SHARED_OBJECT: _get_shared_object,
    FrontendRequest.GPU_SET_SOCKET: _gpu_set_socket,
    FrontendRequest.GET_SHMEM_CONFIG: _get_shmem_config,
    FrontendRequest.NET_SET_MTU: _net_set_mtu,
    FrontendRequest.SEND_RARP: _send_rarp,
    FrontendRequest.GET_STATUS: _get_status,
}
"""Every message that is served; the table knows the others, which are refused."""
