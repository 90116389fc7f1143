"""IOTLB messages: what an IOMMU between device and memory says of I/O virtual addresses.

Nothing of them stays in the session. Each worker has a cache of its own, and a fresh one asks anew:
a front-end answers the same question any number of times.
"""

from __future__ import annotations

from vuproc.errors import MessageRefused
from vuproc.spec.iotlb import ACCESS_MAX, IotlbType
from vuproc.spec.vhost_user import U64, FrontendRequest, ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.change import Change, Fds, Fields, Handler
from vuproc.vhost_user.effects import InvalidateIotlb, UpdateIotlb
from vuproc.vhost_user.memory_table import covers_together
from vuproc.vhost_user.state import Offer, State

_ADDRESS_END = 1 << 64
_DONE = U64.pack(value=0)


def check_can_miss(features: int, protocol_features: int) -> None:
    """MessageRefused if there is to be an IOMMU, and nobody to ask what its addresses are."""
    wanted = features & Feature.ACCESS_PLATFORM
    if wanted and not protocol_features & ProtocolFeature.BACKEND_REQ:
        raise MessageRefused("ACCESS_PLATFORM without BACKEND_REQ: there is no way to ask")


def _iotlb_msg(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    kind = fields["type"]
    if kind == IotlbType.UPDATE:
        effect: UpdateIotlb | InvalidateIotlb = _update(state, fields)
    elif kind == IotlbType.INVALIDATE:
        effect = _invalidate(fields)
    else:
        raise MessageRefused(f"type {kind} is not for a front-end to say")
    return Change(state=state, effects=(effect,), answer=lambda state, results: _DONE)


def _update(state: State, fields: Fields) -> UpdateIotlb:
    iova, size, user_addr = fields["iova"], fields["size"], fields["user_addr"]
    where = f"the translation of {iova:#x}"
    if size == 0:
        raise MessageRefused(f"{where} has size 0")
    for start in (iova, user_addr):
        if start + size > _ADDRESS_END:
            raise MessageRefused(f"{where}: {start:#x} + {size:#x} wraps around")
    if fields["perm"] > ACCESS_MAX:
        raise MessageRefused(f"{where} has unknown permissions {fields['perm']:#x}")
    if fields["perm"] and not covers_together(state.regions, user_addr, size):
        raise MessageRefused(f"{where} is {user_addr:#x}+{size:#x}, which is no guest memory")
    return UpdateIotlb(iova, size, user_addr, fields["perm"])


def _invalidate(fields: Fields) -> InvalidateIotlb:
    """To forget too much is no mistake.

    QEMU adds 1 to a mask: the whole of the address space, which virtio-iommu has, is 0 bytes.
    """
    first, size = fields["iova"], fields["size"]
    last = min(first + size, _ADDRESS_END) - 1 if size else _ADDRESS_END - 1
    return InvalidateIotlb(first, last)


IOTLB_HANDLERS: dict[FrontendRequest, Handler] = {FrontendRequest.IOTLB_MSG: _iotlb_msg}
"""The part of `HANDLERS` that is about them."""
