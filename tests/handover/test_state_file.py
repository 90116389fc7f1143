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

from tests.handover.earlier import earlier_bytes
from vuproc.fd import Fd
from vuproc.handover.state_file import (
    AREA_BYTES,
    LOG_BYTES,
    WHOLE,
    Applying,
    Idle,
    Parts,
    Phase,
    Receiving,
    Replying,
    StateFile,
    StateFull,
    StateUnreadable,
)

Written = tuple[Phase, Parts]

BOUND_S = 20.0
ROOT = 3
"""The word that every write moves."""
FIRST = 32 + 4096 + 8
"""Where the first record of the first log is, with areas of 4096 bytes: log 1 is in the second."""
STATE = {-1: b"head", 0: b"ring", 1: b"ring"}

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
        state_file.write(phase, STATE)
        assert state_file.read() == successor(state_file) == (phase, STATE)


def test_a_write_changes_the_parts_that_it_names_also_after_a_takeover() -> None:
    with made() as state_file:
        state_file.write(Idle(), STATE)
        state_file.write(Replying(exact=True), {0: b"changed"})
        assert successor(state_file) == (Replying(exact=True), {**STATE, 0: b"changed"})
        after = StateFile.open(state_file.fd.dup())
        after.read()
        after.write(Idle(), {1: b"too"})
        assert successor(state_file) == (Idle(), {**STATE, 0: b"changed", 1: b"too"})
        after.close()


def test_a_write_costs_what_has_changed_however_much_there_is() -> None:
    costs = []
    for rings in (1, 1000):
        with made(AREA_BYTES) as state_file:
            state_file.write(Idle(), {ring: bytes(200) for ring in range(rings)})
            before = state_file.left
            state_file.write(Replying(exact=True), {0: bytes(200)})
            costs.append(before - state_file.left)
    assert costs[0] == costs[1] < 300


def test_a_log_that_has_grown_goes_on_in_the_other_area() -> None:
    with made(AREA_BYTES) as state_file:
        state = {ring: bytes(1000) for ring in range(8)}
        state_file.write(Idle(), state)
        roots = [state_file._words[ROOT]]
        while len(roots) < 400:
            state[len(roots) % 8] = b"%d" % len(roots) * 300
            state_file.write(Idle(), {len(roots) % 8: state[len(roots) % 8]})
            roots.append(state_file._words[ROOT])
            assert successor(state_file) == (Idle(), state)
    logs = {root >> 32 for root in roots}
    assert logs == set(range(1, max(logs) + 1)) and max(logs) > 2
    assert max(root & 0xFFFFFFFF for root in roots) < LOG_BYTES + 9000


def test_the_effects_begun_are_one_store_and_belong_to_their_message() -> None:
    with made() as state_file:
        state_file.write(Applying(5, 1, b"x", ()), STATE)
        state_file.begin_effect(1)
        state_file.left = 1
        state_file.begin_effect(2)
        assert successor(state_file) == (Applying(5, 1, b"x", (), begun=2), STATE)
        state_file.left = 1 << 20
        state_file.write(Applying(6, 1, b"y", ()))
        assert successor(state_file) == (Applying(6, 1, b"y", ()), STATE)


WRITES: list[Written] = [
    (Idle(), {-1: b"A" * 40, 0: b"B" * 20, 1: b"C" * 20}),
    (Applying(12, 9, b"payload", ("session.1",)), {}),
    (Replying(exact=True), {0: b"D" * 90}),
    (Idle(), {}),
    (Idle(), {-1: b"", 1: b"E" * 7}),
    (Receiving(), {0: b"F" * 50, 1: b"G" * 30}),
]


def states(writes: list[Written]) -> list[Written]:
    """What each of these leaves."""
    found: list[Written] = []
    for phase, parts in writes:
        found.append((phase, {**(found[-1][1] if found else {}), **parts}))
    return found


@pytest.mark.parametrize("area_bytes", [4096, 256], ids=["one log", "many"])
def test_a_death_at_every_store_leaves_the_old_or_the_new(area_bytes: int) -> None:
    with made(area_bytes) as state_file:
        state_file.left = cost_start = 1 << 30
        for write in WRITES:
            state_file.write(*write)
        cost = cost_start - state_file.left
        logs = state_file._words[ROOT] >> 32
    assert cost > 300 and (logs > 2) == (area_bytes == 256)
    seen = set()
    for stores in range(cost + 1):
        with made(area_bytes) as state_file:
            state_file.left = stores
            done = 0
            try:
                for write in WRITES:
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
                assert successor(state_file) == states(WRITES)[done - 1]
            seen.add(done)
    assert seen == set(range(len(WRITES) + 1))


PARTS = st.dictionaries(st.integers(-2, 4), st.binary(max_size=60), max_size=4)


@given(
    writes=st.lists(st.tuples(st.sampled_from(PHASES), PARTS), min_size=2, max_size=8),
    deaths=st.lists(st.integers(0, 900), min_size=1, max_size=4),
    area_bytes=st.sampled_from([768, 4096]),
)
@settings(deadline=None, max_examples=150)
def test_successors_that_die_too_leave_the_old_or_the_new(
    writes: list[Written], deaths: list[int], area_bytes: int
) -> None:
    with made(area_bytes) as first:
        first.write(*writes[0])
        expected = writes[0]
        for stores in deaths:
            state_file = Mortal.open(first.fd.dup())
            assert isinstance(state_file, Mortal)
            assert state_file.read() == expected
            state_file.left = stores
            try:
                for phase, parts in writes[1:]:
                    state_file.write(phase, parts)
                    expected = phase, {**expected[1], **parts}
            except Dead:
                pass
            state_file.close()
            assert successor(first) == expected


# ---- files of version 1 --------------------------------------------------------------------------


@contextmanager
def of_version_1(number: int, phase: Phase, snapshot: bytes) -> Iterator[Mortal]:
    """A file as a program before has left it, whose last write had this number."""
    with made() as state_file:
        content = earlier_bytes(number, phase, snapshot, 4096)
        os.pwrite(state_file.fd.fileno(), content, 0)
        yield state_file


OLD = Applying(12, 9, b"payload", ("session.1",), begun=3)


@pytest.mark.parametrize("number", [1, 2, 77, (1 << 32) - 1, 1 << 32, (1 << 40) + 5])
def test_a_file_of_version_1_is_read_and_goes_on_in_this_one(number: int) -> None:
    with of_version_1(number, OLD, b"state") as first:
        assert successor(first) == (OLD, {WHOLE: b"state"})
        state_file = StateFile.open(first.fd.dup())
        state_file.read()
        state_file.write(OLD, STATE)
        assert successor(first) == (OLD, STATE)
        state_file.begin_effect(4)
        state_file.write(Idle(), {0: b"changed"})
        assert successor(first) == (Idle(), {**STATE, 0: b"changed"})
        assert first._halves[2] == 2, "a program that knows version 1 alone would go on from it"
        state_file.close()


def test_a_death_at_every_store_of_the_first_write_leaves_the_old_or_the_new() -> None:
    seen = set()
    for stores in range(200):
        with of_version_1(8, OLD, b"state") as first:
            state_file = Mortal.open(first.fd.dup())
            assert isinstance(state_file, Mortal)
            state_file.read()
            state_file.left = stores
            try:
                state_file.write(Idle(), STATE)
                expected: Written = Idle(), STATE
            except Dead:
                expected = OLD, {WHOLE: b"state"}
            state_file.close()
            assert successor(first) == expected
            seen.add(first._halves[2])
            # And the next one, which has the same to do.
            after = StateFile.open(first.fd.dup())
            after.read()
            after.write(Receiving(), STATE)
            after.close()
            assert successor(first) == (Receiving(), STATE)
    assert seen == {1, 2}


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    with made(256) as state_file:
        state_file.write(Idle(), STATE)
        with pytest.raises(StateFull) as caught:
            state_file.write(Idle(), {1: bytes(256)})
        assert caught.value.size > 256
        assert successor(state_file) == (Idle(), STATE)
        state_file.write(Receiving(), {2: bytes(10)})
        assert successor(state_file) == (Receiving(), {**STATE, 2: bytes(10)})


def test_it_holds_the_largest_session() -> None:
    """509 regions and 256 rings, each with four descriptors of their own."""
    regions = [((1 << 64) - 1,) * 4 + ("session.1000000",)] * 509
    ring = ((1 << 64) - 1,) * 10 + ("session.1000000",) * 4
    parts = {-1: msgspec.msgpack.encode([regions, bytes(4096)])}
    parts |= dict.fromkeys(range(256), msgspec.msgpack.encode(ring))
    with made(AREA_BYTES) as state_file:
        state_file.write(Applying(24, 9, bytes(4096), ("session.1000000",) * 253), parts)
        assert successor(state_file)[1] == parts
    assert sum(map(len, parts.values())) < AREA_BYTES / 8


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
        (8, struct.pack("I", 0), "version 0, not 1 to 2"),
        (8, struct.pack("I", 3), "version 3, not 1 to 2"),
        (12, struct.pack("I", 4104), "8224 bytes with areas of 4104"),
        (12, struct.pack("I", 0xFFFFFFFF), "8224 bytes with areas of 4294967295"),
    ],
)
def test_a_state_file_of_another_kind_is_not_opened(offset: int, data: bytes, reason: str) -> None:
    with made() as state_file:
        state_file.write(Idle(), STATE)
        os.pwrite(state_file.fd.fileno(), data, offset)
        assert unreadable(state_file.fd.dup()) == reason


def test_a_file_that_is_none_is_not_opened() -> None:
    assert "not sealed" in unreadable(Fd(os.memfd_create("plain", os.MFD_ALLOW_SEALING)))
    assert unreadable(Fd(os.open("/proc/self/status", os.O_RDONLY))) == "Invalid argument"
    short = Fd(os.memfd_create("short", os.MFD_ALLOW_SEALING))
    fcntl.fcntl(short.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    assert unreadable(short) == "not a state file"


def damage(offset: int, data: bytes) -> Callable[[StateFile], None]:
    return lambda state_file: void(os.pwrite(state_file.fd.fileno(), data, offset))


def void(_: object) -> None:
    pass


def unreadable_after(harm: Callable[[StateFile], None], state_file: StateFile) -> str:
    harm(state_file)
    with pytest.raises(StateUnreadable) as caught:
        successor(state_file)
    return caught.value.reason


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage(24, struct.pack("<II", 40, 2)), "log 2 is not in its area"),
        (damage(24, struct.pack("<II", 5000, 1)), "log 1 has 5000 bytes"),
        (damage(24, struct.pack("<II", 40, 1)), "the record at 8 of log 1 has 48 bytes"),
        (damage(24, struct.pack("<II", 8, 1)), "log 1 has no phase: Input data was truncated"),
        (damage(FIRST + 4, struct.pack("I", 5000)), "the record at 8 of log 1 has 5040 bytes"),
        (damage(FIRST + 26, b"?"), "the record at 8 of log 1 fails its checksum"),
    ],
)
def test_memory_that_no_death_leaves_is_not_believed(
    harm: Callable[[StateFile], None], reason: str
) -> None:
    with made() as state_file:
        state_file.write(Idle(), {0: b"ring"})
        state_file.write(Idle(), {0: b"ring"})
        assert unreadable_after(harm, state_file) == reason


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage(16, struct.pack("Q", 2)), "write 2 is not in its area"),
        (damage(32 + 4096 + 20, struct.pack("I", 5000)), "write 1 has 5011 bytes"),
        (damage(32 + 4096 + 40, b"?"), "write 1 fails its checksum"),
        (damage(16, bytes(8)), "nothing was written"),
    ],
)
def test_a_file_of_version_1_that_no_death_leaves_is_not_believed(
    harm: Callable[[StateFile], None], reason: str
) -> None:
    with of_version_1(1, Idle(), b"state") as state_file:
        assert unreadable_after(harm, state_file) == reason


@given(
    harm=st.lists(st.tuples(st.integers(0, 32 + 2 * 1024 - 1), st.integers(0, 255)), min_size=1),
    writes=st.lists(st.tuples(st.sampled_from(PHASES), PARTS), min_size=1, max_size=6),
)
@settings(deadline=None, max_examples=200)
def test_damage_anywhere_is_an_error_in_words_or_changes_nothing(
    harm: list[tuple[int, int]], writes: list[Written]
) -> None:
    with made(1024) as state_file:
        for write in writes:
            state_file.write(*write)
        for offset, value in harm:
            os.pwrite(state_file.fd.fileno(), bytes([value]), offset)
        try:
            phase, parts = successor(state_file)
        except StateUnreadable as error:
            assert error.reason
            return
        if isinstance(phase, Applying):
            phase = msgspec.structs.replace(phase, begun=0)  # which no checksum has
        assert (phase, parts) in states(writes)


@pytest.mark.parametrize("end", range(0, 1400, 7))
def test_an_end_that_is_not_where_a_record_ends_is_an_error(end: int) -> None:
    with made() as state_file:
        ends = {}
        for number, write in enumerate(WRITES):
            state_file.write(*write)
            ends[state_file._words[ROOT] & 0xFFFFFFFF] = states(WRITES)[number]
        state_file._words[ROOT] = 1 << 32 | end
        if end in ends:
            assert successor(state_file) == ends[end]
        else:
            unreadable_after(void, state_file)


WRITER = """
import itertools, sys
from vuproc.fd import Fd
from vuproc.handover.state_file import Applying, Idle, StateFile, Replying
state_file = StateFile.open(Fd(int(sys.argv[1])))
print("open", flush=True)
for number in itertools.count():
    state = b"%d " % number * 500
    state_file.write(Applying(number, 1, b"%d" % number, ()), {0: state, 1: state})
    state_file.begin_effect(1)
    state_file.write(Replying(exact=True), {1: state})
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
                while attempt and state_file._words[ROOT] >> 32 < 100 * attempt:
                    assert time.monotonic() < deadline
                writer.send_signal(signal.SIGKILL)
            if attempt == 0:
                continue
            phase, state = successor(state_file)
            numbers = set(state[0].split() + state[1].split())
            assert len(numbers) == 1
            if isinstance(phase, Applying):
                assert {phase.payload} == {b"%d" % phase.request} == numbers
                assert phase.begun in (0, 1)
