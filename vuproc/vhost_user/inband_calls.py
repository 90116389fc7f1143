"""In-band notifications to the driver: what workers write to their bells goes out as messages."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from functools import partial

from vuproc.chores import Meanwhile
from vuproc.fd import Fd
from vuproc.poll_set import PollSet
from vuproc.vhost_user.snapshot import changed_rings
from vuproc.vhost_user.state import State
from vuproc.vhost_user.vring import Vring

_COUNT_BYTES = 8


class InbandCalls:
    """Listens to the call bells of the rings that run; `call(ring)` is for each that has rung.

    The bells are the session's, which closes none of a ring that runs.
    """

    def __init__(self, polls: PollSet, call: Callable[[int], None]) -> None:
        self._polls = polls
        self._call = call
        self._bells: dict[int, Fd] = {}
        self._rings: tuple[Vring, ...] = ()

    def follow(self, state: State) -> None:
        """Listen to those of the state. What a ring that has stopped had to say is passed on now:
        before the front-end hears that it has.
        """
        before, self._rings = self._rings, state.rings
        changed = {
            index: _bell_of(state.rings[index]) for index in changed_rings(before, self._rings)
        }
        for ring, bell in changed.items():
            if bell is None and ring in self._bells:
                self._pass_on(ring)
                self._polls.selector.unregister(self._bells.pop(ring))
        for ring, bell in changed.items():
            if bell is not None and ring not in self._bells:
                self._bells[ring] = bell
                # A call changes nothing that a message may be about, and a driver waits for it.
                action = Meanwhile(partial(self._pass_on, ring))
                self._polls.selector.register(bell, selectors.EVENT_READ, action)

    def close(self) -> None:
        """Listen to none any more."""
        for bell in self._bells.values():
            self._polls.selector.unregister(bell)
        self._bells.clear()

    def _pass_on(self, ring: int) -> None:
        try:
            os.read(self._bells[ring].fileno(), _COUNT_BYTES)
        except BlockingIOError:
            return  # it was passed on a moment ago
        self._call(ring)


def _bell_of(ring: Vring) -> Fd | None:
    """What its worker calls by, if that goes out as a message and the ring runs."""
    if not ring.started or ring.bells is None or ring.call_used is not ring.bells.call:
        return None
    return ring.bells.call
