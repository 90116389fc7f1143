"""What a successor does with the message that was under way when its predecessor died: a pure rule.

| the state file says | what the kernel says | to do |
|---|---|---|
| idle | - | go on |
| receiving | - | close: some of the message is lost |
| applying, perhaps not taken | the whole message is in the socket's queue | go on: read it now |
| applying, perhaps not taken | some of it was taken, and it may carry descriptors | close |
| applying, perhaps not taken | some of it was taken, and it carries none | apply again |
| applying, taken | - | apply again: to the state before it, with the stored descriptors |
| replying, the answer in the outbox | some of the answer is in the outbox | send that, and go on |
| replying, the answer in the outbox | the outbox is empty | go on: it was sent |
| replying, beside the outbox | - | close: whether the answer was sent cannot be known |

"Go on" and "apply again" leave the front-end without a trace of the death. "Close" happens inside
short windows: between taking the descriptors of a message and storing them, around an answer that
carries a descriptor, and while a message comes in pieces, which no known front-end sends. The
front-end sees its connection end and may come back.

Applying again is safe, for it begins in the state before the message: every worker of the
predecessor is dead, new ones are brought to that state, and each effect sets something rather than
adds to it. The one exception is a ring's start, which may have happened already: its record must
not be cleared twice. `Applying.begun` tells.
"""

from __future__ import annotations

from enum import Enum

from vuproc.handover.state_file import Applying, Idle, Phase, Receiving

HEADER_BYTES = 12
"""Of a vhost-user message."""


class Decision(Enum):
    """What to do first in the predecessor's session."""

    GO_ON = "go on"
    APPLY_AGAIN = "apply again"
    SEND_REST = "send the rest of the answer"
    CLOSE = "close the connection"


def decide(phase: Phase, *, untaken: int, unsent: int, may_carry_fds: bool) -> Decision:
    """Decide by the state file's phase and by what the kernel has kept.

    `untaken` is the number of bytes of the message that are in the socket's queue still, `unsent`
    that of the answer in the outbox; `may_carry_fds`: messages of this kind may.
    """
    if isinstance(phase, Idle):
        return Decision.GO_ON
    if isinstance(phase, Applying):
        if phase.fds is not None:
            return Decision.APPLY_AGAIN
        if untaken == HEADER_BYTES + len(phase.payload):
            return Decision.GO_ON
        return Decision.CLOSE if may_carry_fds else Decision.APPLY_AGAIN
    if isinstance(phase, Receiving) or not phase.exact:
        return Decision.CLOSE
    return Decision.SEND_REST if unsent else Decision.GO_ON
