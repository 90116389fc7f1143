"""All parts of a session, the pool's among them, as a successor reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.handover.earlier import whole_session
from tests.vhost_user.dialogue import OFFER, Dialogue, eventfd, memory
from vuproc.errors import RestoreError
from vuproc.fd import Fd
from vuproc.handover.session_snapshot import POOL, Lost, decode, encode_part, encode_pool
from vuproc.handover.state_file import WHOLE
from vuproc.pool.pool_state import PoolState
from vuproc.vhost_user.snapshot import HEAD
from vuproc.vhost_user.state import State

MADE = b"u" * 16


@contextmanager
def written() -> Iterator[tuple[State, PoolState, dict[int, bytes], dict[str, Fd]]]:
    """A session's state and the pool's, as parts, and what is stored under which name."""
    with Dialogue() as dialogue, memory() as records, memory() as made:
        dialogue.remember()
        for index in range(2):
            dialogue.tell("SET_VRING_KICK", [eventfd()], value=index)
        stored: dict[str, Fd] = {"session.100": records, "session.101": made}
        names: dict[Fd, str] = {}
        parts = {}
        for number, part in dialogue.session.snapshot().items():
            for fd in part.fds:
                name = names.setdefault(fd, f"session.{len(names)}")
                stored[name] = fd
            parts[number] = encode_part(part, tuple(names[fd] for fd in part.fds))
        pool = PoolState(((4, b"cfg"),), ((1, 7),), records, b"said", (), ((MADE, made),))
        parts[POOL] = encode_pool(pool, "session.100", ["session.101"])
        yield dialogue.state, pool, parts, stored


def test_what_is_written_is_read() -> None:
    with written() as (state, pool, parts, stored):
        taken = decode(parts, OFFER, stored.__getitem__, stored.__getitem__)
        assert taken == (state, pool)


def earlier(state: State, stored: dict[str, Fd], version: int = 1) -> bytes:
    """The same as programs before had it; the pool's files are the last two that are stored."""
    data, fds = whole_session(state)
    names = {fd: name for name, fd in stored.items()}
    return msgspec.msgpack.encode(
        {
            "version": version,
            "session": data,
            "names": {name: names[fd] for name, fd in fds.items()},
            "config": ((4, b"cfg"),),
            "kept": ((1, 7),),
            "records": "session.100",
            "said": b"said",
            "made": ((MADE, "session.101"),),
        }
    )


def test_what_a_program_before_has_written_is_read() -> None:
    with written() as (state, pool, _, stored):
        whole = {WHOLE: earlier(state, stored)}
        assert decode(whole, OFFER, stored.__getitem__, stored.__getitem__) == (state, pool)


def test_e7_another_version_is_an_error() -> None:
    with written() as (state, _, parts, stored):
        content = msgspec.msgpack.decode(parts[POOL])
        parts[POOL] = msgspec.msgpack.encode({**content, "version": 3})
        with pytest.raises(Lost, match="of version 3, not 2"):
            decode(parts, OFFER, stored.__getitem__, stored.__getitem__)
        with pytest.raises(Lost, match="of version 2, not 1"):
            whole = {WHOLE: earlier(state, stored, 2)}
            decode(whole, OFFER, stored.__getitem__, stored.__getitem__)


@pytest.mark.parametrize("number", [POOL, HEAD, 0])
def test_a_part_that_is_missing_is_an_error(number: int) -> None:
    with written() as (_, _, parts, stored):
        del parts[number]
        with pytest.raises((Lost, RestoreError), match=r"lacks|is missing"):
            decode(parts, OFFER, stored.__getitem__, stored.__getitem__)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_parts_are_an_error_or_another_state(data: st.DataObject) -> None:
    with written() as (state, _, parts, stored):

        def find(name: str) -> Fd:
            if name not in stored:
                raise Lost(name)
            return stored[name]

        if data.draw(st.booleans()):
            parts = {WHOLE: earlier(state, stored)}
        number = data.draw(st.sampled_from(sorted(parts)))
        damaged = bytearray(parts[number])
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        parts[number] = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        try:
            decode(parts, OFFER, find, find)
        except (Lost, RestoreError) as error:
            assert str(error)
        assert not any(fd.closed for fd in stored.values())
