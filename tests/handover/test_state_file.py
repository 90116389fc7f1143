"""The state file: what a successor reads after a death between any two stores, or inside one."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vuproc.fd import Fd
from vuproc.handover.state_file import (
    AREA_BYTES,
    Applying,
    Idle,
    Phase,
    Receiving,
    Replying,
    StateFile,
    StateFull,
    StateUnreadable,
)

Written = tuple[Phase, bytes]

BOUND_S = 20.0
ROOT = 2
"""The word that every write moves."""

PHASES: list[Phase] = [
    Idle(),
    Receiving(),
    Applying(12, 0x9, b"\1\0\0\0\0\0\0\0"),
    Applying(12, 0x9, b"\1\0\0\0\0\0\0\0", ("session.4",)),
    Replying(exact=True),
    Replying(exact=False),
]


class Dead(Exception):
    """The process has been killed."""


class Mortal(StateFile):
    """A state file whose process dies after `left` bytes' worth of stores.

    A word is stored whole or not at all; a run of bytes may be cut anywhere.
    """

    left = 1 << 60

    def _store_word(self, offset: int, value: int) -> None:
        self._pay(1)
        super()._store_word(offset, value)

    def _store_half(self, offset: int, value: int) -> None:
        self._pay(1)
        super()._store_half(offset, value)

    def _store_bytes(self, offset: int, data: bytes) -> None:
        granted = min(self.left, len(data))
        super()._store_bytes(offset, data[:granted])
        self._pay(len(data))

    def _pay(self, stores: int) -> None:
        if self.left < stores:
            self.left = 0
            raise Dead
        self.left -= stores


@contextmanager
def made(area_bytes: int = 4096) -> Iterator[Mortal]:
    state_file = Mortal.create(area_bytes)
    assert isinstance(state_file, Mortal)
    try:
        yield state_file
    finally:
        state_file.close()


def successor(state_file: StateFile) -> Written:
    """What another process reads."""
    after = StateFile.open(state_file.fd.dup())
    try:
        return after.read()
    finally:
        after.close()


def unreadable(fd: Fd) -> str:
    with pytest.raises(StateUnreadable) as caught:
        StateFile.open(fd).close()
    assert fd.closed
    return caught.value.reason


@pytest.mark.parametrize("phase", PHASES, ids=repr)
def test_what_is_written_is_read(phase: Phase) -> None:
    with made() as state_file:
        state_file.write(phase, b"state")
        assert state_file.read() == successor(state_file) == (phase, b"state")


def test_a_write_without_a_snapshot_keeps_the_last_also_after_a_takeover() -> None:
    with made() as state_file:
        state_file.write(Idle(), b"state")
        state_file.write(Replying(exact=True))
        assert successor(state_file) == (Replying(exact=True), b"state")
        after = StateFile.open(state_file.fd.dup())
        after.read()
        after.write(Idle())
        assert successor(state_file) == (Idle(), b"state")
        after.close()


def test_the_effects_begun_are_one_store_and_belong_to_their_message() -> None:
    with made() as state_file:
        state_file.write(Applying(5, 1, b"x", ()), b"state")
        state_file.begin_effect(1)
        state_file.left = 1
        state_file.begin_effect(2)
        assert successor(state_file) == (Applying(5, 1, b"x", (), begun=2), b"state")
        state_file.left = 1 << 20
        state_file.write(Applying(6, 1, b"y", ()))
        assert successor(state_file) == (Applying(6, 1, b"y", ()), b"state")


def test_a_death_at_every_store_leaves_the_old_or_the_new() -> None:
    writes: list[Written] = [
        (Idle(), b"A" * 40),
        (Applying(12, 9, b"payload", ("session.1",)), b"A" * 40),
        (Replying(exact=True), b"B" * 90),
        (Idle(), b""),
        (Idle(), b"C" * 7),
    ]
    cost = 0
    with made() as state_file:
        state_file.left = cost_start = 1 << 30
        for write in writes:
            state_file.write(*write)
        cost = cost_start - state_file.left
    assert cost > 300
    seen = set()
    for stores in range(cost + 1):
        with made() as state_file:
            state_file.left = stores
            done = 0
            try:
                for write in writes:
                    state_file.write(*write)
                    done += 1
            except Dead:
                pass
            if done == 0:
                with pytest.raises(StateUnreadable, match="nothing was written"):
                    successor(state_file)
            else:
                # Between the root's store and the return of write() there is no store, so a write
                # that is not done is not there.
                assert successor(state_file) == writes[done - 1]
            seen.add(done)
    assert seen == set(range(len(writes) + 1))


@given(
    writes=st.lists(
        st.tuples(st.sampled_from(PHASES), st.binary(max_size=300)), min_size=2, max_size=6
    ),
    deaths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=150)
def test_successors_that_die_too_leave_the_old_or_the_new(
    writes: list[Written], deaths: list[int]
) -> None:
    with made() as first:
        first.write(*writes[0])
        expected = writes[0]
        for stores in deaths:
            state_file = Mortal.open(first.fd.dup())
            assert isinstance(state_file, Mortal)
            assert state_file.read() == expected
            state_file.left = stores
            try:
                for write in writes[1:]:
                    state_file.write(*write)
                    expected = write
            except Dead:
                pass
            state_file.close()
            assert successor(first) == expected


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    with made(256) as state_file:
        state_file.write(Idle(), b"state")
        with pytest.raises(StateFull) as caught:
            state_file.write(Idle(), bytes(256))
        assert caught.value.size > 256
        assert successor(state_file) == (Idle(), b"state")


def test_it_holds_the_largest_session() -> None:
    """509 regions and 256 rings, each with four descriptors of their own."""
    regions = [((1 << 64) - 1,) * 4 + ("session.1000000",)] * 509
    rings = [((1 << 64) - 1,) * 10 + ("session.1000000",) * 4] * 256
    snapshot = msgspec.msgpack.encode([regions, rings, bytes(4096)])
    with made(AREA_BYTES) as state_file:
        state_file.write(Applying(24, 9, bytes(4096), ("session.1000000",) * 253), snapshot)
        assert successor(state_file)[1] == snapshot
    assert len(snapshot) < AREA_BYTES / 8


def test_its_size_is_sealed() -> None:
    with made() as state_file:
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(state_file.fd.fileno(), size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(state_file.fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"X", "not a state file"),
        (8, struct.pack("I", 2), "version 2, not 1"),
        (12, struct.pack("I", 4104), "8224 bytes with areas of 4104"),
        (12, struct.pack("I", 0xFFFFFFFF), "8224 bytes with areas of 4294967295"),
    ],
)
def test_a_state_file_of_another_kind_is_not_opened(offset: int, data: bytes, reason: str) -> None:
    with made() as state_file:
        state_file.write(Idle(), b"state")
        os.pwrite(state_file.fd.fileno(), data, offset)
        assert unreadable(state_file.fd.dup()) == reason


def test_a_file_that_is_none_is_not_opened() -> None:
    assert "not sealed" in unreadable(Fd(os.memfd_create("plain", os.MFD_ALLOW_SEALING)))
    assert unreadable(Fd(os.open("/proc/self/status", os.O_RDONLY))) == "Invalid argument"
    short = Fd(os.memfd_create("short", os.MFD_ALLOW_SEALING))
    fcntl.fcntl(short.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    assert unreadable(short) == "not a state file"


def damage(offset: int, data: bytes) -> Callable[[StateFile], None]:
    # The first write has number 1 and is in the second area, which begins at 32 + 4096.
    return lambda state_file: void(os.pwrite(state_file.fd.fileno(), data, offset))


def void(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage(16, struct.pack("Q", 2)), "write 2 is not in its area"),
        (damage(32 + 4096 + 20, struct.pack("I", 5000)), "write 1 has 5011 bytes"),
        (damage(32 + 4096 + 40, b"?"), "write 1 fails its checksum"),
    ],
)
def test_memory_that_no_death_leaves_is_not_believed(
    harm: Callable[[StateFile], None], reason: str
) -> None:
    with made() as state_file:
        state_file.write(Idle(), b"state")
        harm(state_file)
        with pytest.raises(StateUnreadable) as caught:
            successor(state_file)
        assert caught.value.reason == reason


WRITER = """
import itertools, sys
from vuproc.fd import Fd
from vuproc.handover.state_file import Applying, Idle, StateFile, Replying
state_file = StateFile.open(Fd(int(sys.argv[1])))
print("open", flush=True)
for number in itertools.count():
    state = b"%d " % number * 500
    state_file.write(Applying(number, 1, b"%d" % number, ()), state)
    state_file.begin_effect(1)
    state_file.write(Replying(exact=True), state)
    state_file.write(Idle())
"""


def test_a_process_that_is_killed_leaves_a_whole_state() -> None:
    with made(1 << 16) as state_file:
        for attempt in range(12):
            command = [sys.executable, "-c", WRITER, str(state_file.fd.fileno())]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, pass_fds=[state_file.fd.fileno()]
            ) as writer:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"open\n"
                deadline = time.monotonic() + BOUND_S
                while attempt and state_file._words[ROOT] < 1000 * attempt:
                    assert time.monotonic() < deadline
                writer.send_signal(signal.SIGKILL)
            if attempt == 0:
                continue
            phase, state = successor(state_file)
            numbers = set(state.split())
            assert len(numbers) == 1
            if isinstance(phase, Applying):
                assert {phase.payload} == {b"%d" % phase.request} == numbers
                assert phase.begun in (0, 1)
