"""Postcopy: which message may come when, what it makes the worker do, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    GUEST,
    MAPPED,
    OFFER,
    PROTOCOL_FEATURES,
    USER,
    Dialogue,
    Outcome,
    P,
    copied,
    eventfd,
    kinds,
    memory,
)
from vuproc.spec.vhost_user import U64
from vuproc.vhost_user.effects import Effect, EffectFailed, OpenUserfault, StageMemory
from vuproc.vhost_user.session import Session
from vuproc.vhost_user.state import Postcopy

PROTOCOL = (PROTOCOL_FEATURES | P.PAGEFAULT) & ~P.CONFIGURE_MEM_SLOTS
LATE = replace(OFFER, protocol_features=int(PROTOCOL))


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    with Dialogue(LATE, protocol=PROTOCOL) as made:
        yield made


def listen(dialogue: Dialogue) -> None:
    assert dialogue.tell("POSTCOPY_ADVISE", need_reply=False).ok
    assert dialogue.tell("POSTCOPY_LISTEN").ok


def stage(dialogue: Dialogue) -> Outcome:
    items = [dialogue.region(number) for number in range(2)]
    fds = [memory(0x10000) for _ in items]
    return dialogue.tell("SET_MEM_TABLE", fds, need_reply=False, items=items)


def acknowledge(dialogue: Dialogue, value: int = 0) -> Outcome:
    return dialogue.tell("SET_MEM_TABLE", payload=U64.pack(value=value), need_reply=False)


def test_the_advice_is_answered_with_a_descriptor(dialogue: Dialogue) -> None:
    outcome = dialogue.tell("POSTCOPY_ADVISE", need_reply=False)
    assert (kinds(outcome.effects), outcome.payload) == (["OpenUserfault"], b"")
    assert len(outcome.reply_sizes) == 1
    assert dialogue.state.postcopy is Postcopy.ADVISED


def test_without_a_userfaultfd_the_connection_ends(dialogue: Dialogue) -> None:
    dialogue.result = lambda effect: EffectFailed("not permitted")
    assert dialogue.tell("POSTCOPY_ADVISE").closed == "POSTCOPY_ADVISE: not permitted"
    assert dialogue.state.postcopy is Postcopy.OFF


def test_a_table_is_answered_with_the_workers_addresses(dialogue: Dialogue) -> None:
    listen(dialogue)
    outcome = stage(dialogue)
    assert kinds(outcome.effects) == ["StageMemory"]
    assert outcome.fields is not None
    items = outcome.fields["items"]
    assert [item["user_addr"] for item in items] == [MAPPED, MAPPED + (1 << 32)]
    assert [item["guest_addr"] for item in items] == [GUEST, GUEST + 0x10000]
    assert (len(dialogue.state.staged), dialogue.state.regions) == (2, ())


def test_it_is_used_once_that_was_acknowledged(dialogue: Dialogue) -> None:
    listen(dialogue)
    stage(dialogue)
    outcome = acknowledge(dialogue)
    assert outcome.ok
    assert (kinds(outcome.effects), outcome.payload) == (["GuardMemory"], None)
    assert [region.user_addr for region in dialogue.state.regions] == [USER, USER + 0x10000]
    assert dialogue.state.staged == ()


def test_rings_start_no_sooner(dialogue: Dialogue) -> None:
    listen(dialogue)
    dialogue.tell("SET_FEATURES", value=LATE.features)
    for name, num in (("SET_VRING_NUM", 128), ("SET_VRING_BASE", 0)):
        assert dialogue.tell(name, index=0, num=num).ok
    dialogue.address()
    dialogue.tell("SET_VRING_KICK", [eventfd()], value=0)
    assert kinds(stage(dialogue).effects) == ["StageMemory"]
    assert kinds(acknowledge(dialogue).effects) == ["GuardMemory", "StartRing"]


@pytest.mark.parametrize("value", [1, 1 << 32])
def test_a56_another_second_message_ends_the_connection(dialogue: Dialogue, value: int) -> None:
    listen(dialogue)
    stage(dialogue)
    assert acknowledge(dialogue, value).closed
    assert dialogue.state.regions == ()


@pytest.mark.parametrize("name", ["GET_FEATURES", "POSTCOPY_END", "POSTCOPY_LISTEN"])
def test_so_does_any_other(dialogue: Dialogue, name: str) -> None:
    listen(dialogue)
    stage(dialogue)
    assert "not acknowledged" in (dialogue.tell(name).closed or "")


def test_a_table_comes_again(dialogue: Dialogue) -> None:
    listen(dialogue)
    for _ in range(2):
        assert stage(dialogue).ok
        assert acknowledge(dialogue).ok
    assert len(dialogue.state.regions) == 2


def test_memory_that_was_there_before_cannot_be_waited_for(dialogue: Dialogue) -> None:
    assert dialogue.tell("POSTCOPY_ADVISE").ok
    assert dialogue.remember().ok
    assert dialogue.tell("POSTCOPY_LISTEN").failed


def test_a56_the_order_of_messages(dialogue: Dialogue) -> None:
    assert dialogue.tell("POSTCOPY_LISTEN").failed
    assert dialogue.tell("POSTCOPY_END").payload == U64.pack(value=1)
    listen(dialogue)
    assert dialogue.tell("POSTCOPY_LISTEN").failed
    assert dialogue.tell("POSTCOPY_ADVISE").closed
    outcome = dialogue.tell("POSTCOPY_END")
    assert (kinds(outcome.effects), outcome.payload) == (["CloseUserfault"], U64.pack())
    assert dialogue.state.postcopy is Postcopy.OFF


def test_addresses_that_do_not_fit_the_table_are_a_failure(dialogue: Dialogue) -> None:
    listen(dialogue)

    def one_too_few(effect: Effect) -> object:
        return (MAPPED,) if isinstance(effect, StageMemory) else dialogue.perform(effect)

    dialogue.result = one_too_few
    assert "addresses of 2 regions" in (stage(dialogue).closed or "")


def test_a_successor_knows_of_it(dialogue: Dialogue) -> None:
    listen(dialogue)
    stage(dialogue)
    copies = copied(dialogue.session.snapshot())
    session = Session.restore(LATE, copies)
    assert session.state.postcopy is Postcopy.LISTENING
    assert len(session.state.staged) == 2
    session.release()


def test_the_userfaultfd_is_no_other_value(dialogue: Dialogue) -> None:
    dialogue.result = lambda effect: None if isinstance(effect, OpenUserfault) else 0
    assert "not a userfaultfd" in (dialogue.tell("POSTCOPY_ADVISE").closed or "")
