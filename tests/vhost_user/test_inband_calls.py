"""What workers ring is passed on, and before the front-end hears that a ring has stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from vuproc.fd import Fd
from vuproc.poll_set import PollSet
from vuproc.vhost_user.effects import Bells
from vuproc.vhost_user.inband_calls import InbandCalls
from vuproc.vhost_user.state import State
from vuproc.vhost_user.vring import Vring


def eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


class Stage:
    """Two rings that run, with bells; `heard` are the calls that came through."""

    def __init__(self) -> None:
        self.polls = PollSet()
        self.heard: list[int] = []
        self.calls = InbandCalls(self.polls, self.heard.append)
        self.bells = [Bells(eventfd(), eventfd()) for _ in range(2)]
        rings = (Vring(index=i, started=True, bells=bells) for i, bells in enumerate(self.bells))
        self.state = State(rings=tuple(rings))
        self.calls.follow(self.state)

    def with_ring(self, **changes: object) -> State:
        return self.state.with_ring(replace(self.state.rings[1], **changes))

    def close(self) -> None:
        self.calls.close()
        self.polls.close()
        for bells in self.bells:
            bells.kick.close()
            bells.call.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def test_several_calls_of_a_ring_are_one_message(stage: Stage) -> None:
    stage.bells[1].call.notify()
    stage.bells[1].call.notify()
    stage.polls.turn(0.0)
    stage.polls.turn(0.0)
    assert stage.heard == [1]


def test_a_call_before_the_stop_of_its_ring_is_passed_on_at_the_stop(stage: Stage) -> None:
    stage.bells[0].call.notify()
    stage.bells[1].call.notify()
    stage.calls.follow(stage.with_ring(started=False))
    assert stage.heard == [1]
    stage.bells[1].call.notify()
    stage.polls.turn(0.0)
    assert stage.heard == [1, 0]


def test_a_ring_with_a_descriptor_to_call_by_is_not_listened_to(stage: Stage) -> None:
    with eventfd() as call:
        stage.calls.follow(stage.with_ring(call=call))
        stage.bells[1].call.notify()
        stage.polls.turn(0.0)
    assert stage.heard == []
