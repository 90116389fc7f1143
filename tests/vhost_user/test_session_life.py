"""Rings that break, workers that start afresh, steps under way, and the end of a session."""

from __future__ import annotations

import pytest

from tests.vhost_user.dialogue import (
    FEATURES,
    GUEST,
    OFFER,
    Dialogue,
    eventfd,
    kinds,
    memory,
    stream,
)
from vuproc.errors import CloseConnection
from vuproc.fd import Fd
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature, Status
from vuproc.vhost_user.effects import (
    AddRegion,
    Effect,
    EffectFailed,
    SetFeatures,
    SetMemory,
    StartRing,
    StopRing,
)
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.wire import Message

# ---- broken rings --------------------------------------------------------------------------------


def test_a_broken_ring_is_not_running_and_sets_needs_reset() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.start(1)
        assert dialogue.session.ring_broken(0, "loop in a chain") is False
        assert dialogue.session.running() == (1,)
        assert dialogue.state.rings[0].broken == "loop in a chain"
        assert dialogue.state.status & Status.NEEDS_RESET


def test_without_the_status_feature_no_status_is_made_up() -> None:
    with Dialogue(protocol=int(ProtocolFeature.REPLY_ACK)) as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.session.ring_broken(0, "bad")
        assert dialogue.state.status == 0


def test_the_front_end_is_told_once_where_there_is_a_channel() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_BACKEND_REQ_FD", [stream()])
        dialogue.remember()
        dialogue.start(0)
        assert dialogue.session.ring_broken(0, "bad") is True
        assert dialogue.session.ring_broken(0, "bad again") is False
        assert dialogue.state.rings[0].broken == "bad"


@pytest.mark.parametrize("index", [-1, 1, 4, 1000])
def test_a_ring_that_does_not_run_cannot_break(index: int) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        before = dialogue.state
        assert dialogue.session.ring_broken(index, "bad") is False
        assert dialogue.state is before


def test_no_worker_is_bothered_with_a_broken_ring() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.session.ring_broken(0, "bad")
        for name in ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"):
            outcome = dialogue.tell(name, [eventfd()], value=0)
            assert outcome.ok
            assert outcome.effects == ()
        assert dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects == ()


def test_get_vring_base_brings_a_broken_ring_back() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.session.ring_broken(0, "bad")
        dialogue.positions = {0: 12}
        outcome = dialogue.tell("GET_VRING_BASE", index=0, num=0)
        assert outcome.effects == (StopRing(0),)
        assert outcome.fields == {"index": 0, "num": 12}
        assert kinds(dialogue.start(0, base=12).effects) == ["StartRing"]
        assert dialogue.session.running() == (0,)


@pytest.mark.parametrize("how", ["RESET_DEVICE", "RESET_OWNER"])
def test_a_reset_brings_a_broken_ring_back(how: str) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.session.ring_broken(0, "bad")
        assert StopRing(0) in dialogue.tell(how).effects
        assert kinds(dialogue.start(0).effects) == ["StartRing"]
        assert dialogue.session.running() == (0,)


@pytest.mark.parametrize("first", ["NUM", "BASE", "ADDR"])
def test_a_new_set_up_brings_a_broken_ring_back_and_stops_it_first(first: str) -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.session.ring_broken(0, "bad")
        dialogue.positions = {0: 40}
        outcome = {
            "NUM": lambda: dialogue.tell("SET_VRING_NUM", index=0, num=64),
            "BASE": lambda: dialogue.tell("SET_VRING_BASE", index=0, num=41),
            "ADDR": lambda: dialogue.address(0),
        }[first]()
        assert outcome.effects == (StopRing(0),)
        ring = dialogue.state.rings[0]
        assert not ring.started
        assert ring.base == (41 if first == "BASE" else 40)
        (start,) = dialogue.start(0, base=2).effects
        assert isinstance(start, StartRing)
        assert start.setup.base == 2


def test_a_ring_that_breaks_while_a_step_is_under_way_is_broken_after_it() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.start(1)

        def perform(effect: Effect) -> object:
            if isinstance(effect, SetMemory):
                dialogue.session.ring_broken(0, "its memory is gone")
            return dialogue.perform(effect)

        dialogue.result = perform
        far = dialogue.region(64)
        outcome = dialogue.tell("SET_MEM_TABLE", [memory(0x10000)], items=[far])
        assert outcome.ok
        assert dialogue.state.rings[0].broken == "its memory is gone"
        assert dialogue.state.status & Status.NEEDS_RESET
        assert dialogue.session.running() == (1,)


def test_a_ring_that_breaks_in_its_first_pass_is_broken_after_its_start() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_BACKEND_REQ_FD", [stream()])
        dialogue.remember()
        told = []

        def perform(effect: Effect) -> object:
            if isinstance(effect, StartRing):
                told.append(dialogue.session.ring_broken(effect.setup.index, "bad avail.idx"))
            return dialogue.perform(effect)

        dialogue.result = perform
        assert dialogue.start(0).ok
        assert told == [True]
        assert dialogue.session.running() == ()
        assert dialogue.state.rings[0].broken == "bad avail.idx"


def test_a_break_during_a_step_that_fails_is_not_forgotten() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)

        def perform(effect: Effect) -> object:
            dialogue.session.ring_broken(0, "bad")
            return EffectFailed("no")

        dialogue.result = perform
        assert dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **dialogue.region(64)).failed
        assert dialogue.session.running() == ()


# ---- replay --------------------------------------------------------------------------------------


def test_a_fresh_worker_of_a_fresh_session_is_told_nothing() -> None:
    with Dialogue() as dialogue:
        assert list(replay(dialogue.session.state)) == []


def test_replay_tells_features_memory_and_the_started_rings_asked_for() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        for index in (0, 1, 3):
            dialogue.start(index, base=index)
        dialogue.tell("SET_VRING_ENABLE", index=1, num=1)
        features, table, *starts = list(replay(dialogue.session.state))
        assert features == SetFeatures(FEATURES & ~Feature.LOG_ALL)
        assert table == SetMemory(dialogue.state.regions)
        assert [s.setup.index for s in starts if isinstance(s, StartRing)] == [0, 1, 3]
        assert kinds(list(replay(dialogue.session.state, []))) == ["SetFeatures", "SetMemory"]
        (*_, start) = list(replay(dialogue.session.state, (1, 2)))
        assert isinstance(start, StartRing)
        setup = start.setup
        assert (setup.index, setup.base, setup.enabled) == (1, 1, True)
        assert setup.kick is dialogue.state.rings[1].kick


def test_replay_splits_a_table_so_that_its_descriptors_fit_one_message() -> None:
    with Dialogue() as dialogue:
        shared = memory(0x10000)
        for number in range(70):
            fields = dialogue.region(number)
            assert dialogue.tell("ADD_MEM_REG", [shared.dup()], **fields).ok
        shared.close()
        table, *rest = list(replay(dialogue.session.state))
        assert isinstance(table, SetMemory)
        assert len(table.regions) == 64
        assert kinds(rest) == ["AddRegion"] * 6
        added = [effect.region for effect in rest if isinstance(effect, AddRegion)]
        assert [*table.regions, *added] == list(dialogue.state.regions)


def test_replay_during_a_step_is_of_the_state_before_it() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        seen: list[list[str]] = []

        def perform(effect: Effect) -> object:
            seen.append(kinds(list(replay(dialogue.session.state))))
            return dialogue.perform(effect)

        dialogue.result = perform
        dialogue.start(0)
        assert seen == [["SetMemory"]]
        assert kinds(list(replay(dialogue.session.state))) == ["SetMemory", "StartRing"]


# ---- steps ---------------------------------------------------------------------------------------


def test_one_message_is_finished_before_the_next_is_taken() -> None:
    session = Session(OFFER)
    step = session.handle(Message(1))
    with pytest.raises(RuntimeError, match="not finished"):
        session.handle(Message(1))
    step.finish(())
    with pytest.raises(RuntimeError, match="finished already"):
        step.finish(())


@pytest.mark.parametrize("done", [0, 1])
def test_effects_left_out_count_as_failed(done: int) -> None:
    with Dialogue() as dialogue:
        dialogue.start(0)
        before = dialogue.state
        fields = {"guest_addr": GUEST, "size": 1 << 20, "user_addr": 0x7F0000000000}
        row = Message(37).spec
        assert row is not None
        message = Message(37, 0x9, row.payload.encode(**fields), (memory(),))
        step = dialogue.session.handle(message)
        assert kinds(step.effects) == ["AddRegion", "StartRing"]
        assert step.finish([None] * done) is not None
        assert step.refused == f"{done} of 2 effects were carried out"
        assert dialogue.state is before


def test_results_may_end_at_the_first_failure() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        dialogue.start(1)
        step = dialogue.session.handle(Message(34, 0x9))
        assert kinds(step.effects) == ["StopRing", "StopRing", "ResetDevice"]
        step.finish([EffectFailed("stuck")])
        assert step.refused == "stuck"
        assert dialogue.session.running() == (0, 1)


def test_a_failure_that_cannot_be_reported_ends_the_connection_at_finish() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        dialogue.start(0)
        fd = eventfd()
        step = dialogue.session.handle(Message(13, 0x1, bytes(8), (fd,)))
        with pytest.raises(CloseConnection, match="SET_VRING_CALL: worker gone"):
            step.finish([EffectFailed("worker gone")])
        assert step.refused == "worker gone"
        assert fd.closed


# ---- the end -------------------------------------------------------------------------------------


def test_the_end_stops_every_started_ring_and_closes_every_descriptor_after_that() -> None:
    dialogue = Dialogue()
    dialogue.tell("SET_BACKEND_REQ_FD", [stream()])
    dialogue.remember()
    dialogue.tell("SET_VRING_ERR", [eventfd()], value=3)
    dialogue.start(0)
    dialogue.start(2)
    dialogue.session.ring_broken(2, "bad")
    fds = dialogue.state.fds()
    assert len(fds) == 7
    kept = [StopRing(index, keeps_record=True) for index in (0, 2)]
    assert dialogue.session.close() == kept
    assert not any(fd.closed for fd in fds)
    dialogue.session.release()
    assert all(fd.closed for fd in fds)
    assert dialogue.session.close() == []


def test_the_end_in_the_middle_of_a_step_closes_its_descriptors_too() -> None:
    dialogue = Dialogue()
    fd = memory()
    row = Message(37).spec
    assert row is not None
    payload = row.payload.encode(**dialogue.region(0))
    dialogue.session.handle(Message(37, 0x9, payload, (fd,)))
    dialogue.session.release()
    assert fd.closed


def test_a40_a_whole_session_leaves_no_descriptor_behind() -> None:
    fds: list[Fd] = []
    for _ in range(20):
        with Dialogue() as dialogue:
            dialogue.remember()
            for index in range(4):
                dialogue.start(index)
            fds += dialogue.state.fds()
    assert len(fds) == 20 * 9
    assert all(fd.closed for fd in fds)
