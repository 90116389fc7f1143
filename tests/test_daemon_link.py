"""The channel between a program and its daemon's master: neither waits for the other."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.daemon_devices import Mark
from vuproc import device_object, events
from vuproc.device_file.model import File, Socket
from vuproc.events import AnyEvent, Connected, Disconnected, EventsLost, Stopped
from vuproc.fd import Fd
from vuproc.ops.admin import AdminError, Request
from vuproc.program import start
from vuproc.program.delivery import EVENTS_MOST, Delivery
from vuproc.program.flag import Flag, wait_for
from vuproc.program.link import WAITING_MOST, ProgramLink
from vuproc.program.messages import Answer, Ask, Began, ProgramChannel, Refused, program_end
from vuproc.program.start import ObjectStart
from vuproc.workers.channel import MAX_DATAGRAM

BOUND_S = 20.0


class Ends:
    """Both ends of a channel; the master's with a poll set, a turn of which is `turn`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "_listeners", [])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.program: ProgramChannel = program_end(ours)
        wanted = ObjectStart(
            name="mark",
            kind="Mark",
            device=device_object.pickled(Mark()),
            keys=File(socket=Socket(path="/nowhere"), device={}),
            workers=((0,),),
        )
        life = Fd(os.pidfd_open(os.getpid()))
        self.link = ProgramLink(Fd(theirs.detach()), life, wanted, msgspec.msgpack.encode(wanted))
        self.selector = selectors.PollSelector()
        self.reloads: list[str] = []
        verbs = {"status": self.status, "reload": self.reload, "queue-restart": self.refuse}
        self.link.attach(self.selector, verbs)

    def status(self, _request: Request) -> dict[str, Any]:
        return {"long": "x" * 1_000_000}

    def refuse(self, request: Request) -> dict[str, Any]:
        raise AdminError(f"no queue {request.queue}")

    def reload(self, _request: Request) -> dict[str, Any]:
        self.reloads.append(self.link.described().type_ref)
        if len(self.reloads) > 1:
            raise AdminError("not again")
        return {"lines": []}

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()
        self.link.tend()

    def ask(self, *asks: Ask) -> list[Answer]:
        for each in asks:
            self.program.send(each)
        for _ in asks:
            self.turn()
        return [told for told in self.told() if isinstance(told, Answer)]

    def told(self) -> list[Any]:
        found = []
        while (received := self.program.receive()) is not None:
            found.append(received[0])
            self.turn()
        return found

    def close(self) -> None:
        self.link.close()
        self.link.end()
        self.selector.close()
        self.program.close()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    both = Ends(monkeypatch)
    yield both
    both.close()


def test_an_answer_may_be_longer_than_a_datagram(ends: Ends) -> None:
    (answer,) = ends.ask(Ask(7, "status"))
    assert answer.serial == 7 and answer.result is not None
    with answer.result as result:
        content = msgspec.msgpack.decode(device_object.content_of(result))
    assert len(content["long"]) == 1_000_000


def test_what_is_refused_is_told_in_words(ends: Ends) -> None:
    first, second = ends.ask(Ask(1, "queue-restart", 5), Ask(2, "format"))
    assert (first.error, second.error) == ("no queue 5", "unknown verb 'format'")


def test_a_reload_that_is_refused_leaves_what_was_wanted(ends: Ends) -> None:
    wanted = ends.link.wanted
    assert isinstance(wanted, ObjectStart)
    for kind in ("Second", "Third"):
        with start.sealed(msgspec.structs.replace(wanted, kind=kind)) as file:
            for answer in ends.ask(Ask(1, "reload", wanted=file)):
                if answer.result is not None:
                    answer.result.close()
    assert ends.reloads == ["Second", "Third"]
    assert ends.link.described().type_ref == "Second"


def test_a_program_that_does_not_read_costs_no_time_and_hears_how_much_it_missed(
    ends: Ends,
) -> None:
    sent = 3 * WAITING_MOST
    begun = time.monotonic()
    for number in range(sent):
        events.announce(Disconnected(reason=f"{number} " + "x" * 1000, ours=False))
    assert time.monotonic() - begun < BOUND_S / 4
    told = ends.told()
    lost = [each for each in told if isinstance(each, EventsLost)]
    heard = [each for each in told if isinstance(each, Disconnected)]
    assert [each.reason.split()[0] for each in heard] == [str(n) for n in range(len(heard))]
    assert len(lost) == 1 and lost[0].count + len(heard) == sent
    assert ends.link.due() is None


def test_a_program_that_has_hung_up_is_no_error(ends: Ends) -> None:
    ends.program.close()
    ends.turn()
    events.announce(Connected())
    ends.turn()
    assert not ends.selector.get_map()


def test_a_program_that_says_what_is_not_understood_is_heard_on(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    number = os.dup(ends.program.fileno())
    with socket.socket(fileno=number) as raw:
        raw.send(b"\xff" * 10)
    ends.turn()
    assert "what the program says is not understood" in caplog.text
    (answer,) = ends.ask(Ask(1, "format"))
    assert answer.error == "unknown verb 'format'"


def test_what_is_too_large_to_be_told_holds_up_nothing(ends: Ends) -> None:
    ends.link.refuse(Refused("device", "x" * MAX_DATAGRAM))
    ends.link.refuse(Refused("device", "short"))
    assert [each.reason for each in ends.told() if isinstance(each, Refused)] == ["short"]
    assert ends.link.due() is None


def test_the_first_word_is_which_process_has_begun(ends: Ends) -> None:
    assert ends.told() == [Began(os.getpid())]


def test_events_that_nobody_takes_are_counted() -> None:
    gate, seen = threading.Event(), list[AnyEvent]()

    def slow(event: AnyEvent) -> None:
        gate.wait(BOUND_S)
        seen.append(event)

    delivery = Delivery(slow)
    for _ in range(EVENTS_MOST + 10):
        delivery.put(Connected())
    gate.set()
    delivery.finish(Stopped(reason="over"))
    assert wait_for((delivery.done,), BOUND_S)
    lost = [event.count for event in seen if isinstance(event, EventsLost)]
    assert sum(lost) + seen.count(Connected()) == EVENTS_MOST + 10
    assert lost and lost[0] >= 9 and seen[-1] == Stopped(reason="over")


def test_a_flag_is_set_for_ever_also_once_it_is_closed() -> None:
    flag, other = Flag(), Flag()
    assert not wait_for((flag, other), 0.01)
    threading.Timer(0.05, other.set).start()
    assert wait_for((flag, other), BOUND_S)
    other.close()
    assert wait_for((other,), 0) and other.copy() is None
    flag.close()
    assert not wait_for((flag,), 0)
