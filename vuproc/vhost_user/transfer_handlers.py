"""What the messages that move a device's own state do: pure, as `handlers`.

Only a suspended device has its state moved, one of which no ring is started. A ring that starts
nevertheless ends the transfer: a front-end that could not migrate its guest lets it run on, and
says nothing of what it had begun.
"""

from __future__ import annotations

from msgspec.structs import replace

from vuproc.errors import MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.spec.vhost_user import (
    STATE_FD_NO_FD,
    STATE_PHASE_STOPPED,
    U64,
    FrontendRequest,
    ProtocolFeature,
    StateDirection,
)
from vuproc.vhost_user.change import Change, Fds, Fields, Handler
from vuproc.vhost_user.effects import CheckTransfer, LoadState, SaveState
from vuproc.vhost_user.state import Offer, State

_SAYS_RESET = ProtocolFeature.DEVICE_STATE | ProtocolFeature.RESET_DEVICE


def keeps_its_state(state: State) -> bool:
    """Whether the device's own state outlives SET_STATUS 0.

    QEMU writes 0 when it stops a device, of a guest that is merely paused as well, and asks for the
    state after that. One that moves state has RESET_DEVICE for a reset of the driver's.
    """
    return state.protocol_features & _SAYS_RESET == _SAYS_RESET


def _set_device_state_fd(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """The answer comes at once, and never with a descriptor: the front-end's pipe will do."""
    direction, phase = fields["direction"], fields["phase"]
    if phase != STATE_PHASE_STOPPED:
        raise MessageRefused(f"phase {phase} is not {STATE_PHASE_STOPPED}, stopped")
    running = next(iter(state.started), None)
    if running is not None:
        raise MessageRefused(f"vring {running.index} is not stopped")
    (pipe,) = fds
    effect: SaveState | LoadState
    match direction:
        case StateDirection.SAVE:
            effect = SaveState(_end(pipe, "writing", pipe.writable))
        case StateDirection.LOAD:
            effect = LoadState(_end(pipe, "reading", pipe.readable))
        case _:
            raise MessageRefused(f"direction {direction} is neither 0, save, nor 1, load")
    return Change(
        state=replace(state, transferring=True),
        effects=(effect,),
        answer=lambda state, results: U64.pack(value=STATE_FD_NO_FD),
    )


def _end(pipe: Fd, purpose: str, able: bool) -> Fd:
    if pipe.kind is not FdKind.PIPE:
        raise MessageRefused("the descriptor is no pipe")
    if not able:
        raise MessageRefused(f"the pipe is not open for {purpose}")
    return pipe


def _check_device_state(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    if not state.transferring:
        raise MessageRefused("no state was moved since the device was suspended or asked last")
    return Change(
        state=replace(state, transferring=False),
        effects=(CheckTransfer(),),
        answer=lambda state, results: U64.pack(),
    )


TRANSFER_HANDLERS: dict[FrontendRequest, Handler] = {
    FrontendRequest.SET_DEVICE_STATE_FD: _set_device_state_fd,
    FrontendRequest.CHECK_DEVICE_STATE: _check_device_state,
}
"""The part of `HANDLERS` that moves the device's own state."""
