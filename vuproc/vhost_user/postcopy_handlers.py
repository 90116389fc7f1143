"""What the messages of a migration by postcopy do: pure, as `handlers`.

The guest runs at its destination before all of its memory has come. A page that is missing is asked
for by whoever touches it: the worker's userfaultfd tells the front-end, which gets the page from
the source and has the worker go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from vuproc.errors import CloseConnection, MessageRefused
from vuproc.spec.vhost_user import REGIONS, U64, FrontendRequest
from vuproc.vhost_user.change import Change, Fds, Fields, Handler
from vuproc.vhost_user.effects import (
    CloseUserfault,
    GuardMemory,
    OpenUserfault,
    Region,
    StageMemory,
)
from vuproc.vhost_user.ring_handlers import start_covered
from vuproc.vhost_user.state import Offer, Postcopy, State

UNACKNOWLEDGED = "the addresses of the memory table were not acknowledged by a u64 of 0"


def _advise(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """The answer is empty and carries the userfaultfd. There is no form to say that there is none:
    the connection ends.
    """
    if state.postcopy is not Postcopy.OFF:
        raise MessageRefused("postcopy has begun already")
    after = replace(state, postcopy=Postcopy.ADVISED)
    return Change(state=after, effects=(OpenUserfault(),), answer=lambda state, results: b"")


def _listen(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    """Pages of memory that is there already may have been touched, and read as zeros."""
    if state.postcopy is not Postcopy.ADVISED:
        raise MessageRefused("POSTCOPY_ADVISE has to come first, and this once")
    if state.regions:
        raise MessageRefused("there is a memory table already, whose pages nobody waits for")
    return Change(state=replace(state, postcopy=Postcopy.LISTENING))


def _end(state: State, offer: Offer, fields: Fields, fds: Fds) -> Change:
    if state.postcopy is Postcopy.OFF:
        raise MessageRefused("postcopy has not begun")
    return Change(
        state=replace(state, postcopy=Postcopy.OFF),
        effects=(CloseUserfault(),),
        answer=lambda state, results: U64.pack(),
    )


def stage_table(state: State, regions: tuple[Region, ...], fields: Fields) -> Change:
    """SET_MEM_TABLE while listening: the answer is the table with the worker's addresses in it, by
    which the front-end knows what the userfaultfd speaks of.
    """

    def answer(after: State, results: Sequence[object]) -> bytes:
        (addresses,) = results
        assert isinstance(addresses, tuple)
        items = [
            {**item, "user_addr": address}
            for item, address in zip(fields["items"], addresses, strict=True)
        ]
        return REGIONS.encode(items=items)

    after = replace(state, staged=regions)
    return Change(state=after, effects=(StageMemory(regions),), answer=answer)


def guard_table(state: State, fields: Fields, fds: Fds) -> Change:
    """The SET_MEM_TABLE after that: now faults can be dealt with, so the memory is used.

    Raises CloseConnection if it is not a u64 of 0.
    """
    if fields["nregions"] or fields["padding"] or fds:
        raise CloseConnection(UNACKNOWLEDGED)
    after = replace(state, regions=state.staged, staged=())
    return start_covered(after, (GuardMemory(),))


POSTCOPY_HANDLERS: dict[FrontendRequest, Handler] = {
    FrontendRequest.POSTCOPY_ADVISE: _advise,
    FrontendRequest.POSTCOPY_LISTEN: _listen,
    FrontendRequest.POSTCOPY_END: _end,
}
"""The part of `HANDLERS` that is about postcopy."""
