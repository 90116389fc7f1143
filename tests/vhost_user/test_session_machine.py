"""Any sequence of legal and illegal messages, with effects that fail at will, against a model."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.vhost_user.dialogue import (
    FEATURES,
    GUEST,
    USER,
    Dialogue,
    Fields,
    Outcome,
    memory,
    stream,
)
from tests.vhost_user.session_model import OFFERED, PROTOCOL, Model, Range, Workers
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, VRING_ADDR_F_LOG, VRING_NO_FD, ProtocolFeature
from vuproc.spec.virtio import Feature, Status
from vuproc.vhost_user.effects import Effect, EffectFailed, ReadConfig, StopRing
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import State

SLOT = 0x4000
REPLY_ACK = int(ProtocolFeature.REPLY_ACK)

indexes = st.integers(0, 3) | st.sampled_from([4, 255, 256, 0xFFFFFFFF])
ring_sizes = st.sampled_from([1, 2, 128, 256, 128, 256, 0, 3, 512, 0xFFFFFFFF])
bases = st.integers(0, 3) | st.sampled_from([65535, 65536, 0xFFFFFFFF])
slots = st.integers(0, 3)
spots = st.sampled_from([0, 0, 0, 0x1000, 0x10, 1, SLOT - 16, SLOT - 2])
used_logs = st.sampled_from([None, None, 0, 0x1000, (1 << 64) - 14, (1 << 64) - 1])
signals = st.sampled_from(["eventfd", "eventfd", "eventfd", "none", "both", "missing", "file"])
answers = st.sampled_from([True, True, True, False])
failures = st.none() | st.none() | st.none() | st.integers(0, 2)
protocols = st.sampled_from(
    [
        int(PROTOCOL),
        int(PROTOCOL),
        REPLY_ACK,
        int(PROTOCOL) & ~REPLY_ACK,
        int(PROTOCOL) & ~int(ProtocolFeature.RESET_DEVICE),
        int(PROTOCOL) | 1 << 40,
        0,
    ]
)
feature_sets = st.sampled_from(
    [
        int(FEATURES),
        int(FEATURES) & ~int(Feature.LOG_ALL),
        int(FEATURES) & ~int(Feature.PROTOCOL_FEATURES),
        int(FEATURES) | 1,
        0,
    ]
)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class SessionMachine(RuleBasedStateMachine):
    """Talks to one session after the other; a connection that closes is followed by a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = memory(2 * SLOT)
        self.made: list[Fd] = []
        self.open_before = open_fds()
        self.fail_at: int | None = None
        self.done = 0
        self.connect()

    def connect(self) -> None:
        self.dialogue = Dialogue(OFFERED, protocol=0)
        self.dialogue.result = self.carry_out
        self.workers = Workers()
        self.model = self.after = Model()
        self.broke = False

    def teardown(self) -> None:
        self.disconnect()
        self.shared.close()

    def disconnect(self) -> None:
        for effect in self.dialogue.session.close():
            self.workers.carry_out(effect)
        assert self.workers.rings == {}
        self.dialogue.session.release()
        assert all(fd.closed for fd in self.made)
        self.made.clear()

    def carry_out(self, effect: Effect) -> object:
        """What a master does: in order, and one may fail, and with it those which rest on it."""
        self.done += 1
        if self.fail_at is not None and self.done > self.fail_at:
            return EffectFailed("as the test wants it")
        self.workers.carry_out(effect)
        for index in self.workers.bereft():
            # A worker says so before it confirms the change of memory.
            self.breaks(index)
        if isinstance(effect, StopRing):
            return self.model.position
        return bytes(effect.size) if isinstance(effect, ReadConfig) else None

    def breaks(self, index: int) -> None:
        """A ring breaks, perhaps while a message is under way."""
        self.broke = True
        if self.after is not self.model:
            self.after.broken(index)
        self.model.broken(index)
        self.dialogue.session.ring_broken(index, "as the test wants it")

    def fresh_workers(self) -> Workers:
        state = self.dialogue.state
        workers = Workers(ring.index for ring in state.rings if ring.broken)
        for effect in list(replay(self.dialogue.session.state)):
            workers.carry_out(effect)
        workers.check(state)
        return workers

    def own(self, *fds: Fd) -> list[Fd]:
        self.made.extend(fds)
        return list(fds)

    def say(
        self,
        name: str,
        rule: tuple[Any, ...],
        fds: list[Fd] | None = None,
        *,
        need_reply: bool = True,
        fail_at: int | None = None,
        **fields: Any,
    ) -> Outcome:
        """One message, compared with what the model makes of it."""
        legal, self.after = self.model.attempt(*rule)
        told = need_reply and self.model.protocol & REPLY_ACK
        if legal and self.after.lacks_memory and self.model.status & Status.FEATURES_OK and told:
            legal, self.after = False, self.model
        before = self.dialogue.state
        self.fail_at, self.done, self.broke = fail_at, 0, False
        outcome = self.dialogue.tell(name, fds or [], need_reply=need_reply, **fields)
        failed = fail_at is not None and fail_at < len(outcome.effects)
        assert outcome.ok == (legal and not failed), (name, fields, outcome)
        if not legal:
            assert outcome.effects == ()
        self.settle(name, outcome, before, need_reply=need_reply)
        return outcome

    def settle(self, name: str, outcome: Outcome, before: State, *, need_reply: bool) -> None:
        row = FRONT_END.named(name)
        if outcome.ok:
            self.model = self.after
            acked = need_reply and bool(self.model.protocol & REPLY_ACK)
            replies = row.replies(self.model.protocol)
            assert (outcome.payload is not None) == (acked or replies)
            return
        assert self.broke or self.dialogue.state is before
        if row.replies(self.model.protocol):
            reportable = row.error_reply is not None
        else:
            reportable = need_reply and bool(self.model.protocol & REPLY_ACK)
        assert (outcome.closed is None) == reportable
        if outcome.effects:
            # The workers are ahead of the state: fresh ones take their place.
            self.workers = self.fresh_workers()
        if outcome.closed is not None:
            self.disconnect()
            self.connect()

    # ---- negotiation -----------------------------------------------------------------------------

    @initialize(value=protocols)
    def begin(self, value: int) -> None:
        self.protocol_features(value, True)

    @rule(value=protocols, need_reply=answers)
    def protocol_features(self, value: int, need_reply: bool) -> None:
        name = "SET_PROTOCOL_FEATURES"
        self.say(name, ("set_protocol_features", value), need_reply=need_reply, value=value)

    @rule(value=feature_sets, need_reply=answers, fail_at=failures)
    def features(self, value: int, need_reply: bool, fail_at: int | None) -> None:
        self.say(
            "SET_FEATURES",
            ("set_features", value),
            need_reply=need_reply,
            fail_at=fail_at,
            value=value,
        )

    @rule(name=st.sampled_from(["SET_OWNER", "RESET_OWNER", "RESET_DEVICE"]), fail_at=failures)
    def whole_device(self, name: str, fail_at: int | None) -> None:
        self.say(name, (name.lower(),), fail_at=fail_at)

    @rule(value=st.sampled_from([0, 0xB, 0xF, 0x8F, 0x100]), fail_at=failures)
    def status(self, value: int, fail_at: int | None) -> None:
        self.say("SET_STATUS", ("set_status", value), fail_at=fail_at, value=value)

    @rule(able=st.booleans(), fail_at=failures)
    def channel(self, able: bool, fail_at: int | None) -> None:
        fds = self.own(stream() if able else self.shared.dup())
        self.say("SET_BACKEND_REQ_FD", ("channel", able), fds, fail_at=fail_at)

    @rule(
        direction=st.sampled_from([0, 0, 1, 1, 2]),
        phase=st.sampled_from([0, 0, 0, 1]),
        able=answers,
        fail_at=failures,
    )
    def move_state(self, direction: int, phase: int, able: bool, fail_at: int | None) -> None:
        load, save = map(Fd, os.pipe2(os.O_CLOEXEC))
        end, other = (save, load) if able == (direction == 0) else (load, save)
        other.close()
        fds = self.own(end)
        self.say(
            "SET_DEVICE_STATE_FD",
            ("move_state", direction, phase, able),
            fds,
            fail_at=fail_at,
            direction=direction,
            phase=phase,
        )

    @rule(fail_at=failures)
    def check_state(self, fail_at: int | None) -> None:
        self.say("CHECK_DEVICE_STATE", ("check_state",), fail_at=fail_at)

    @rule(offset=st.integers(0, 70), size=st.integers(0, 70), flags=st.integers(0, 4))
    def config(self, offset: int, size: int, flags: int) -> None:
        rule = ("set_config", offset, size, flags)
        self.say("SET_CONFIG", rule, offset=offset, flags=flags, data=bytes(size))

    @rule(
        offset=st.sampled_from([0, 24, 2 * SLOT, (1 << 64) - 8]),
        size=st.sampled_from([8, 64, 2 * SLOT, 0, 1 << 63]),
        able=answers,
        fail_at=failures,
    )
    def log(self, offset: int, size: int, able: bool, fail_at: int | None) -> None:
        fds = self.own(self.shared.dup() if able else Fd(os.eventfd(0)))
        self.say(
            "SET_LOG_BASE",
            ("set_log", offset, size, 2 * SLOT, able),
            fds,
            fail_at=fail_at,
            mmap_offset=offset,
            mmap_size=size,
        )

    @rule(able=answers, fail_at=failures)
    def log_call(self, able: bool, fail_at: int | None) -> None:
        fds = self.own(Fd(os.eventfd(0)) if able else self.shared.dup())
        self.say("SET_LOG_FD", ("log_call", able), fds, fail_at=fail_at)

    # ---- memory ----------------------------------------------------------------------------------

    def region(self, slot: int, pages: int) -> tuple[Range, Fields]:
        offset, size = slot * SLOT, pages * SLOT
        fields = {"guest_addr": GUEST + offset, "user_addr": USER + offset, "size": size}
        return (GUEST + offset, USER + offset, size), fields

    @rule(chosen=st.lists(slots, max_size=4), pages=st.integers(1, 2), fail_at=failures)
    def table(self, chosen: list[int], pages: int, fail_at: int | None) -> None:
        regions = [self.region(slot, pages) for slot in chosen]
        self.say(
            "SET_MEM_TABLE",
            ("set_memory", [region for region, _ in regions]),
            self.own(*(self.shared.dup() for _ in regions)),
            fail_at=fail_at,
            items=[fields for _, fields in regions],
        )

    @rule(slot=slots, pages=st.integers(1, 2), fail_at=failures, need_reply=answers)
    def grow(self, slot: int, pages: int, fail_at: int | None, need_reply: bool) -> None:
        region, fields = self.region(slot, pages)
        fds = self.own(self.shared.dup())
        rule = ("add_region", region)
        self.say("ADD_MEM_REG", rule, fds, fail_at=fail_at, need_reply=need_reply, **fields)

    @rule(slot=slots, pages=st.integers(1, 2), fail_at=failures, with_fd=st.booleans())
    def shrink(self, slot: int, pages: int, fail_at: int | None, with_fd: bool) -> None:
        region, fields = self.region(slot, pages)
        fds = self.own(self.shared.dup()) if with_fd else []
        self.say("REM_MEM_REG", ("remove_region", region), fds, fail_at=fail_at, **fields)

    # ---- rings -----------------------------------------------------------------------------------

    @rule(index=indexes, num=ring_sizes, need_reply=answers, fail_at=failures)
    def num(self, index: int, num: int, need_reply: bool, fail_at: int | None) -> None:
        self.say(
            "SET_VRING_NUM",
            ("num", index, num),
            need_reply=need_reply,
            fail_at=fail_at,
            index=index,
            num=num,
        )

    @rule(index=indexes, base=bases, fail_at=failures)
    def base(self, index: int, base: int, fail_at: int | None) -> None:
        rule = ("base", index, base)
        self.say("SET_VRING_BASE", rule, fail_at=fail_at, index=index, num=base)

    @rule(index=indexes, slot=slots, spot=spots, log=used_logs, fail_at=failures)
    def address(
        self, index: int, slot: int, spot: int, log: int | None, fail_at: int | None
    ) -> None:
        start = USER + slot * SLOT
        areas: Fields = {"desc": start + spot, "avail": start + 0x1800, "used": start + 0x2000}
        self.say(
            "SET_VRING_ADDR",
            ("address", index, *areas.values(), log),
            fail_at=fail_at,
            index=index,
            flags=0 if log is None else VRING_ADDR_F_LOG,
            log=log or 0,
            **areas,
        )

    @rule(index=st.integers(0, 3), num=st.sampled_from([2, 128]), slot=slots, base=bases)
    def set_up(self, index: int, num: int, slot: int, base: int) -> None:
        """A well-behaved front-end, so that rings do start."""
        self.num(index, num, True, None)
        self.base(index, base, None)
        self.address(index, slot, 0, None, None)
        self.signal("SET_VRING_KICK", index, "eventfd", None, True)

    @rule(
        name=st.sampled_from(["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"]),
        index=st.integers(0, 5),
        kind=signals,
        fail_at=failures,
        need_reply=answers,
    )
    def signal(
        self, name: str, index: int, kind: str, fail_at: int | None, need_reply: bool
    ) -> None:
        fds: list[Fd] = []
        if kind in ("eventfd", "both"):
            fds = self.own(Fd(os.eventfd(0)))
        elif kind == "file":
            fds = self.own(self.shared.dup())
        value = index | (VRING_NO_FD if kind in ("none", "both") else 0)
        rule = "kick" if name == "SET_VRING_KICK" else "signal"
        self.say(
            name,
            (rule, index, kind in ("eventfd", "none", "both")),
            fds,
            fail_at=fail_at,
            need_reply=need_reply,
            value=value,
        )

    @rule(index=indexes, num=st.sampled_from([0, 1, 1, 2]), fail_at=failures)
    def enable(self, index: int, num: int, fail_at: int | None) -> None:
        rule = ("enable", index, num)
        self.say("SET_VRING_ENABLE", rule, fail_at=fail_at, index=index, num=num)

    @rule(index=indexes, position=st.integers(0, 65535), fail_at=failures)
    def get_base(self, index: int, position: int, fail_at: int | None) -> None:
        self.model.position = position
        outcome = self.say(
            "GET_VRING_BASE", ("get_base", index), fail_at=fail_at, index=index, num=0
        )
        if outcome.ok:
            assert outcome.fields == {"index": index, "num": self.model.rings[index].base}

    @rule(index=indexes, position=st.integers(0, 65535), fail_at=failures)
    def get_base_at_once(self, index: int, position: int, fail_at: int | None) -> None:
        self.model.position = position
        name, rule = "GET_VRING_BASE_SKIP_DRAIN", ("skip_drain", index)
        outcome = self.say(name, rule, fail_at=fail_at, index=index, num=0)
        if outcome.ok:
            assert outcome.fields == {"index": index, "num": self.model.rings[index].base}

    @rule(index=st.integers(0, 3))
    def ring_breaks(self, index: int) -> None:
        self.breaks(index)
        if index in self.workers.rings:
            self.workers.broken.add(index)

    # ---- anything at all -------------------------------------------------------------------------

    @rule(
        number=st.integers(0, 50) | st.integers(0, 0xFFFFFFFF),
        payload=st.binary(max_size=80),
        count=st.integers(0, 4),
    )
    def garbage(self, number: int, payload: bytes, count: int) -> None:
        """Whatever comes, the session answers or closes; what it then is, only it can say."""
        before = self.dialogue.state
        fds = self.own(*(Fd(os.eventfd(0)) for _ in range(count)))
        self.fail_at, self.done = None, 0
        outcome = self.dialogue.deliver(number, payload, fds)
        if outcome.closed is not None:
            assert self.dialogue.state is before
        if not outcome.ok:
            assert self.dialogue.state is before
        if outcome.closed is not None or self.dialogue.state is not before:
            self.disconnect()
            self.connect()

    # ---- what always holds -----------------------------------------------------------------------

    @invariant()
    def state_is_the_models(self) -> None:
        self.model.check(self.dialogue.state)
        assert self.dialogue.session.running() == tuple(
            index for index, ring in enumerate(self.model.rings) if ring.live
        )

    @invariant()
    def workers_are_where_the_state_says(self) -> None:
        self.workers.check(self.dialogue.state)
        self.fresh_workers()

    @invariant()
    def every_descriptor_is_kept_or_closed_and_none_is_lost(self) -> None:
        kept = self.dialogue.state.fds()
        assert all(fd.closed != (fd in kept) for fd in self.made)
        assert open_fds() == self.open_before + len(kept)


TestSession = SessionMachine.TestCase
TestSession.settings = settings(
    max_examples=60,
    # Not the explaining phase: it traces every line, which takes longer than the test may.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
assert OFFERED.num_queues == 4
