"""One front-end's connection as a pure state machine: no socket, clock or process is in it.

`Session.handle` turns a message into a `Step`: effects that the master carries out in their order.
`Step.finish` takes the results and commits: the state moves on only if every effect succeeded, and
only then is the front-end answered. A refused message leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from vuproc.errors import CloseConnection, MessageRefused
from vuproc.fd import Fd
from vuproc.spec.vhost_user import (
    U64,
    FrontendRequest,
    MessageSpec,
    ProtocolFeature,
)
from vuproc.spec.virtio import Feature, Status
from vuproc.vhost_user.change import Change
from vuproc.vhost_user.effects import (
    Bells,
    Effect,
    EffectFailed,
    FindObject,
    MakeBells,
    MakeInflight,
    OpenUserfault,
    ReadConfig,
    StageMemory,
    StopRing,
)
from vuproc.vhost_user.fd_uses import FdUses
from vuproc.vhost_user.handlers import HANDLERS
from vuproc.vhost_user.postcopy_handlers import UNACKNOWLEDGED
from vuproc.vhost_user.snapshot import Part, changed_parts, fds_of, part_of, restore
from vuproc.vhost_user.state import Offer, State, extra_bits
from vuproc.vhost_user.wire import Message, reply

__all__ = ["Offer", "Session", "State", "Step"]

_DONE = U64.pack(value=0)
_FAILED = U64.pack(value=1)


class Step:
    """One message on its way: effects to be carried out, then `finish` exactly once.

    `refused` is the reason if the message fails, for the log; it is known at the latest when
    `finish` has returned or raised. `doubt` says why nothing will come of it so far. `reply_fds` go
    with the reply which `finish` returns; they are the step's until `take_reply_fds`, and whoever
    does not take them calls `close_reply_fds`.
    """

    def __init__(self, session: Session, message: Message, change: Change | None) -> None:
        self.refused: str | None = None
        self.doubt = ""
        self.reply_fds: tuple[Fd, ...] = ()
        self._session = session
        self._message = message
        self._change = change

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the master has to carry out, one after the other; nothing for a refused message."""
        return self._change.effects if self._change else ()

    def finish(self, results: Sequence[object]) -> bytes | None:
        """Commit or roll back; the bytes to send to the front-end, if any.

        `results` holds one result for each effect, as `effects` says; it may end at the first
        `EffectFailed`. Every descriptor for which the committed state has no use is closed;
        those in the results become the step's.
        Raises CloseConnection if the message failed and no reply can say so.
        """
        return self._session._finish(self, results)

    def take_reply_fds(self) -> tuple[Fd, ...]:
        """The descriptors of the reply, which are the caller's from now on."""
        fds, self.reply_fds = self.reply_fds, ()
        return fds

    def close_reply_fds(self) -> None:
        """The reply is sent, or never will be; nothing happens if there are none."""
        for fd in self.reply_fds:
            fd.close()
        self.reply_fds = ()


class Session:
    """The conversation with one front-end, from its first byte to `release`."""

    def __init__(self, offer: Offer, state: State | None = None) -> None:
        """`state`: where another session was, whose descriptors become this one's."""
        self._offer = offer
        self._state = State.initial(offer.num_queues)
        self._pending: Step | None = None
        self._uses = FdUses()
        if state is not None:
            self._move_on(state)

    @property
    def state(self) -> State:
        """What is committed: every worker has confirmed it."""
        return self._state

    def handle(self, message: Message) -> Step:
        """Take one message, and with it the ownership of its descriptors.

        Raises CloseConnection where no reply can say that the message failed; the state is as it
        was and the message's descriptors are closed.
        """
        if self._pending is not None:
            raise RuntimeError("the step before is not finished")
        doubt = ""
        try:
            change = self._change(message)
            doubt = change.doubt
            self._check_doubt(change, message)
            step = Step(self, message, change)
        except MessageRefused as refusal:
            step = Step(self, message, None)
            step.refused = refusal.reason
            message.close()
            self._refusal(message, refusal.reason)  # raises if no reply can say it
        except CloseConnection as error:
            message.close()
            raise CloseConnection(f"{message.name}: {error.reason}") from None
        except BaseException:
            message.close()
            raise
        step.doubt = doubt
        self._pending = step
        return step

    def running(self) -> tuple[int, ...]:
        """The rings that are started and not broken."""
        return tuple(ring.index for ring in self._state.started if not ring.broken)

    def ring_broken(self, index: int, cause: str) -> bool:
        """Note that a started ring is not served any more until it is set up anew.

        Sets NEEDS_RESET if the status is negotiated. Returns whether the front-end should be told
        by CONFIG_CHANGE_MSG on the back-end channel. May be called while a step is under way.
        """
        return self._amend(lambda state: _with_broken(state, index, cause))

    def ring_revived(self, index: int) -> bool:
        """Note that a broken ring is served again though nobody set it up anew.

        NEEDS_RESET goes with the last broken ring. Returns whether the front-end should be told by
        CONFIG_CHANGE_MSG on the back-end channel. May be called while a step is under way.
        """
        return self._amend(lambda state: _with_revived(state, index))

    def _amend(self, amendment: Callable[[State], State]) -> bool:
        """Change the state though no message asked for it; whether the front-end should be told."""
        before = self._state
        self._state = amendment(before)
        news = self._state is not before
        pending = self._pending
        if pending is not None and pending._change is not None:
            # The step's outcome was computed from the state without this.
            change = pending._change
            after = amendment(change.state)
            news = news or after is not change.state
            pending._change = replace(change, state=after)
        needed = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
        told = self._state.protocol_features & needed == needed
        return news and told and self._state.backend_channel is not None

    def close(self) -> list[Effect]:
        """The connection is gone: the effects that stop every ring. `release` comes after them."""
        return [StopRing(ring.index, keeps_record=True) for ring in self._state.started]

    def release(self) -> None:
        """Close every descriptor that the session still owns."""
        if self._pending is not None:
            self._pending._message.close()
            self._pending = None
        for fd in self._state.fds():
            fd.close()
        self._state, self._uses = State.initial(self._offer.num_queues), FdUses()

    # ---- a master's own death --------------------------------------------------------------------

    def snapshot(self, since: State | None = None) -> dict[int, Part]:
        """The committed state as bytes, by the number of the part: those parts in which it differs
        from `since`, or all. The descriptors stay the session's.

        A message under way is not in it.
        """
        state = self._state
        return {number: part_of(state, number) for number in changed_parts(since, state)}

    @classmethod
    def restore(cls, offer: Offer, parts: Mapping[int, Part]) -> Session:
        """A session that goes on where `snapshot` left another, perhaps of another process.

        It takes over the descriptors of the parts. Raises RestoreError if one is not of its kind,
        or if the bytes or the device are not those of then; all descriptors stay the caller's.
        """
        return cls(offer, restore(offer, parts))

    # ---- one message -----------------------------------------------------------------------------

    def _change(self, message: Message) -> Change:
        """What a message brings about; MessageRefused or CloseConnection if nothing."""
        row = message.spec
        if self._state.staged and message.request != FrontendRequest.SET_MEM_TABLE:
            raise CloseConnection(UNACKNOWLEDGED)
        if row is None:
            raise MessageRefused("unknown message number")
        handler = HANDLERS.get(FrontendRequest(row.number))
        if handler is None:
            raise MessageRefused(_not_served(row))
        self._check_gate(row)
        fewest, most = row.fds
        if not fewest <= len(message.fds) <= most:
            allowed = str(most) if fewest == most else f"{fewest} to {most}"
            raise MessageRefused(f"{len(message.fds)} descriptors came, {allowed} are allowed")
        change = handler(self._state, self._offer, message.fields(), message.fds)
        if row.barrier and not all(effect.barrier for effect in change.effects):
            raise RuntimeError(f"{row.name} is a barrier, and not all of its effects are")
        return change

    def _check_doubt(self, change: Change, message: Message) -> None:
        """Memory may come after the rings, but with a driver that is this far it has not."""
        if change.doubt and self._state.status & Status.FEATURES_OK and self._acknowledged(message):
            raise MessageRefused(change.doubt)

    def _check_gate(self, row: MessageSpec) -> None:
        """A message is legal only once the feature that brought it has been negotiated."""
        missing = extra_bits(row.gate.protocol, self._state.protocol_features)
        if missing:
            raise MessageRefused(f"{ProtocolFeature(missing).name} was not negotiated")
        if extra_bits(row.gate.offered, self._offer.features):
            name = Feature(row.gate.offered).name or f"feature {row.gate.offered:#x}"
            raise MessageRefused(f"{name} was not offered")
        if extra_bits(row.gate.features, self._state.features or 0):
            raise MessageRefused(f"feature bits {row.gate.features:#x} were not acknowledged")

    def _finish(self, step: Step, results: Sequence[object]) -> bytes | None:
        if step is not self._pending:
            raise RuntimeError("this step is finished already")
        self._pending = None
        message, change = step._message, step._change
        if change is None:
            return self._refusal(message, step.refused or "")
        step.reply_fds = _made(change.effects, results)
        step.refused = _failure(self._state, change.effects, results)
        if step.refused is not None:
            step.close_reply_fds()
            message.close()
            return self._refusal(message, step.refused)
        self._commit(_completed(change, results), message)
        if change.answer is not None:
            return reply(message, change.answer(self._state, results))
        return reply(message, _DONE) if self._acknowledged(message) else None

    def _commit(self, state: State, message: Message) -> None:
        """The one place where descriptors are closed for want of a use."""
        unused = self._move_on(state)
        unused.update(fd for fd in message.fds if fd not in self._uses)
        for fd in unused:
            fd.close()

    def _move_on(self, state: State) -> set[Fd]:
        """From now on this is the state; the descriptors for which it has no use any more."""
        changed = changed_parts(self._state, state)
        self._state = state
        return self._uses.change({number: fds_of(state, number) for number in changed})

    def _refusal(self, message: Message, reason: str) -> bytes | None:
        """The reply that says "failed"; CloseConnection if there is no such form."""
        row = message.spec
        if self._state.staged:
            # Rings wait for the front-end, which would not know.
            raise CloseConnection(f"{message.name}: {reason}")
        if row is not None and row.replies(self._state.protocol_features):
            if row.error_reply is not None:
                return reply(message, row.error_reply)
        elif self._acknowledged(message):
            return reply(message, _FAILED)
        raise CloseConnection(f"{message.name}: {reason}")

    def _acknowledged(self, message: Message) -> bool:
        """Whether the sender waits for a u64: it asked, and REPLY_ACK is negotiated.

        For SET_PROTOCOL_FEATURES itself the features after it count, as it is asked after commit.
        """
        return message.need_reply and bool(
            self._state.protocol_features & ProtocolFeature.REPLY_ACK
        )


def _not_served(row: MessageSpec) -> str:
    """What is said of a message for which there is no handler."""
    if not row.gate.protocol:
        return f"{row.name} is not served"
    return f"{row.name} is not served: {row.gate.protocol.name} is not offered"


def _with_broken(state: State, index: int, cause: str) -> State:
    """The state with a live ring marked broken; the very same state if there is none."""
    if not (0 <= index < len(state.rings) and state.rings[index].live):
        return state
    state = state.with_ring(replace(state.rings[index], broken=cause or "unknown cause"))
    if state.protocol_features & ProtocolFeature.STATUS:
        state = replace(state, status=state.status | Status.NEEDS_RESET)
    return state


def _with_revived(state: State, index: int) -> State:
    """The state with a broken ring served again; the very same state if it is not broken."""
    if not (0 <= index < len(state.rings) and state.rings[index].broken):
        return state
    state = state.with_ring(replace(state.rings[index], broken=""))
    if any(ring.broken for ring in state.rings):
        return state
    return replace(state, status=extra_bits(state.status, Status.NEEDS_RESET))


def _made(effects: Sequence[Effect], results: Sequence[object]) -> tuple[Fd, ...]:
    """The descriptors that effects made, for the reply."""
    made: list[Fd] = []
    for effect, result in zip(effects, results, strict=False):
        if isinstance(effect, MakeInflight) and isinstance(result, tuple):
            made += [part for part in result if isinstance(part, Fd)]
        elif isinstance(effect, FindObject | OpenUserfault) and isinstance(result, Fd):
            made.append(result)
    return tuple(made)


def _failure(state: State, effects: Sequence[Effect], results: Sequence[object]) -> str | None:
    """Why the effects do not count as carried out, None if they do."""
    for effect, result in zip(effects, results, strict=False):
        if isinstance(result, EffectFailed):
            return result.reason
        name = type(effect).__name__
        if isinstance(effect, StopRing) and not _is_base(state, result):
            return f"{name} gave {result!r}, not a ring index"
        if isinstance(effect, ReadConfig) and not isinstance(result, bytes):
            return f"{name} gave {result!r}, not bytes"
        if isinstance(effect, MakeInflight) and not _is_region(result):
            return f"{name} gave {result!r}, not a file and its size"
        if isinstance(effect, FindObject) and not isinstance(result, Fd | None):
            return f"{name} gave {result!r}, not a file"
        if isinstance(effect, OpenUserfault) and not isinstance(result, Fd):
            return f"{name} gave {result!r}, not a userfaultfd"
        if isinstance(effect, StageMemory) and not _are_addresses(len(effect.regions), result):
            return f"{name} gave {result!r}, not addresses of {len(effect.regions)} regions"
        if isinstance(effect, MakeBells) and not _are_bells(effect.num_queues, result):
            return f"{name} gave {result!r}, not bells for {effect.num_queues} rings"
    if len(results) != len(effects):
        return f"{len(results)} of {len(effects)} effects were carried out"
    return None


def _is_base(state: State, result: object) -> bool:
    return isinstance(result, int) and 0 <= result <= state.layout.base_max


def _is_region(result: object) -> bool:
    match result:
        case (Fd(), int(size)):
            return size > 0
        case _:
            return False


def _are_addresses(count: int, result: object) -> bool:
    return (
        isinstance(result, tuple)
        and len(result) == count
        and all(isinstance(address, int) and 0 < address < 1 << 64 for address in result)
    )


def _are_bells(count: int, result: object) -> bool:
    return (
        isinstance(result, tuple)
        and len(result) == count
        and all(isinstance(bells, Bells) for bells in result)
    )


def _completed(change: Change, results: Sequence[object]) -> State:
    """The new state with what effects gave: the bases of the stopped rings, and bells."""
    state = change.state
    for effect, result in zip(change.effects, results, strict=True):
        if isinstance(effect, StopRing) and effect.index in change.rebased:
            assert isinstance(result, int)
            ring = replace(state.rings[effect.index], base=result, base_known=True)
            state = state.with_ring(ring)
        if isinstance(effect, MakeBells):
            assert isinstance(result, tuple)
            for ring, bells in zip(state.rings, result, strict=True):
                state = state.with_ring(replace(ring, bells=bells))
    return state
