"""What a handler answers: what one message is to bring about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from vuproc.fd import Fd
from vuproc.vhost_user.effects import Effect
from vuproc.vhost_user.state import Offer, State

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
