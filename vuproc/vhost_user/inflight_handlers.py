"""What the messages about in-flight records do to the state: pure, as `handlers`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from vuproc.errors import MessageRefused
from vuproc.spec.ring_layout import record_room
from vuproc.spec.vhost_user import INFLIGHT, FrontendRequest
from vuproc.spec.virtio import QUEUE_SIZE_MAX
from vuproc.vhost_user.change import Change, Fds, Fields, Handler
from vuproc.vhost_user.effects import MakeInflight
from vuproc.vhost_user.inflight_region import check_extent, make_region
from vuproc.vhost_user.ring_handlers import LARGER_QUEUES, start_covered
from vuproc.vhost_user.state import Offer, State


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
    region = make_region(state.layout, fields, fds[0], offer.num_queues)
    return start_covered(replace(state, inflight=region), ())


INFLIGHT_HANDLERS: dict[FrontendRequest, Handler] = {
    FrontendRequest.GET_INFLIGHT_FD: _get_inflight_fd,
    FrontendRequest.SET_INFLIGHT_FD: _set_inflight_fd,
}
"""The part of `HANDLERS` that is about in-flight records."""
