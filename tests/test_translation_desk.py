"""What a front-end is asked about I/O virtual addresses, and how often."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from vuproc.fd import Fd
from vuproc.poll_set import PollSet
from vuproc.pool.asked_translations import AskedTranslations
from vuproc.pool.pool import WorkerPool
from vuproc.spec.iotlb import IOTLB_PAGE, Access, IotlbType
from vuproc.spec.vhost_user import BACK_END, U64, BackendRequest
from vuproc.spec.virtio import Feature
from vuproc.testing.channel import receive_from
from vuproc.translation_desk import TranslationDesk
from vuproc.vhost_user.backend_channel import BackendChannel
from vuproc.vhost_user.state import State
from vuproc.vhost_user.vring import Vring
from vuproc.vhost_user.wire import Message, Receiver, reply, send
from vuproc.workers.control import Missing

PAGE = 7 * IOTLB_PAGE
WRITE = int(Access.WRITE)
SOON_S, NEVER_S = 5.0, 0.0
"""A question comes before this; what has not come at once does not: all is one thread here."""


class Stage:
    """A queue whose ring runs, the desk, and the front-end's end of the channel."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.polls = PollSet()
        self.receiver = Receiver(self.theirs, SOON_S, table=BACK_END)
        self.fd = Fd(ours.detach())
        self.channel = BackendChannel(self.fd, self.polls)
        self.asked = AskedTranslations()
        self.refused: list[tuple[int, int, int]] = []
        pool = SimpleNamespace(
            asked=self.asked, untranslated=lambda *asked: self.refused.append(asked)
        )
        state = State(rings=(Vring(index=0, started=True),), features=int(Feature.ACCESS_PLATFORM))
        self.desk = TranslationDesk(cast(WorkerPool, pool), lambda: self.channel, lambda: state)

    def ask(self) -> None:
        self.desk.ask(Missing(0, ((PAGE, WRITE),)))

    def question(self, timeout_s: float = SOON_S) -> Message | None:
        message = receive_from(self.theirs, self.receiver, timeout_s)
        assert message is None or message.request == BackendRequest.IOTLB_MSG
        return message

    def acknowledge(self, message: Message | None, *, failed: bool = False) -> None:
        assert message is not None and message.fields()["type"] == IotlbType.MISS
        send(self.theirs, reply(message, U64.pack(value=int(failed))))
        self.channel._ready()

    def translate(self) -> None:
        """As if an UPDATE for it came."""
        assert self.asked.take(PAGE, PAGE + IOTLB_PAGE - 1) == [0]

    def close(self) -> None:
        self.desk.close()
        self.channel.close()
        self.fd.close()
        self.receiver.close()
        self.theirs.close()
        self.polls.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def test_what_is_under_way_is_not_asked_twice(stage: Stage) -> None:
    stage.ask()
    stage.ask()
    first = stage.question()
    assert stage.question(NEVER_S) is None
    stage.translate()
    stage.acknowledge(first)
    assert stage.question(NEVER_S) is None


def test_a_question_between_a_translation_and_its_acknowledgement_is_one_of_its_own(
    stage: Stage,
) -> None:
    """The worker had it, and it was gone again, before the front-end acknowledged the question."""
    stage.ask()
    first = stage.question()
    stage.translate()
    stage.ask()
    assert stage.question(NEVER_S) is None
    stage.acknowledge(first)
    second = stage.question()
    stage.translate()
    stage.acknowledge(second)
    assert stage.question(NEVER_S) is None
    assert stage.refused == []


def test_who_is_refused_does_not_ask_again(stage: Stage) -> None:
    stage.ask()
    first = stage.question()
    stage.ask()
    stage.acknowledge(first, failed=True)
    assert stage.refused == [(0, PAGE, WRITE)]
    assert stage.question(NEVER_S) is None


def test_an_acknowledgement_without_a_translation_is_asked_again_when_the_queue_does(
    stage: Stage,
) -> None:
    stage.ask()
    stage.acknowledge(stage.question())
    assert stage.question(NEVER_S) is None
    stage.ask()
    assert stage.question() is not None
