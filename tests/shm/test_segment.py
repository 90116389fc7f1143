"""Segments: one name, one owner, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest

from vuproc.errors import SegmentInUse, SegmentUnavailable
from vuproc.shm import segment as module
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.segment import HEADER_BYTES, PREFIX, Segment, sweep

APART = "/vuproc-apart."
"""What no vuproc sweeps that starts meanwhile, as those of other tests do."""
NAME = f"{APART}test-{os.getpid()}"
FILE = Path("/dev/shm") / NAME[1:]
assert not APART.startswith(PREFIX)

ABANDON = """
import os, sys
from vuproc.shm import segment as module
from vuproc.shm.segment import Segment
module.PREFIX = sys.argv[2]
segment = Segment.create(sys.argv[1], 100)
segment.buffer[:4] = b"left"
os._exit(0)
"""


CONTEND = """
import sys
from vuproc.errors import SegmentInUse, SegmentUnavailable
from vuproc.shm import segment as module
from vuproc.shm.segment import Segment, sweep
module.PREFIX = sys.argv[2]
for _ in range(300):
    try:
        segment = Segment.create(sys.argv[1], 64)
    except SegmentInUse:
        continue
    # Nobody else may take it away while it is ours.
    for _ in range(3):
        sweep()
    other = Segment.attach(sys.argv[1])
    segment.buffer[0] = 77
    assert other.buffer[0] == 77
    other.close()
    segment.unlink()
    segment.close()
print("ok")
"""


@pytest.fixture(autouse=True)
def no_file_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "PREFIX", APART)
    yield
    left = FILE.exists()
    FILE.unlink(missing_ok=True)
    assert not left


def abandon() -> int:
    """A process that creates the segment and dies; its pid."""
    with subprocess.Popen([sys.executable, "-c", ABANDON, NAME, APART]) as process:
        assert process.wait(30) == 0
        return process.pid


def test_what_one_writes_another_reads() -> None:
    with Segment.create(NAME, 1000) as segment:
        assert (segment.size, segment.owner, len(segment.buffer)) == (1000, os.getpid(), 1000)
        assert bytes(segment.buffer) == bytes(1000)
        segment.buffer[10:13] = b"abc"
        other = Segment.attach(NAME)
        assert (other.size, other.owner) == (1000, os.getpid())
        assert bytes(other.buffer[9:14]) == b"\0abc\0"
        other.buffer[999] = 7
        assert segment.buffer[999] == 7
        other.close()
        assert FILE.stat().st_mode & 0o777 == 0o600
    assert not FILE.exists()


def test_a_living_owners_segment_is_not_replaced() -> None:
    with Segment.create(NAME, 10):
        with pytest.raises(SegmentInUse) as caught:
            Segment.create(NAME, 10)
        assert (caught.value.name, caught.value.pid) == (NAME, os.getpid())
        assert NAME not in sweep()
        assert FILE.exists()


def test_a_dead_owners_segment_outlives_it_and_is_replaced() -> None:
    pid = abandon()
    left = Segment.attach(NAME)
    assert (bytes(left.buffer[:5]), left.owner) == (b"left\0", pid)
    left.close()
    with Segment.create(NAME, 10) as segment:
        assert bytes(segment.buffer) == bytes(10)
        assert segment.owner == os.getpid()


def test_sweep_removes_what_the_dead_left() -> None:
    abandon()
    assert NAME in sweep()
    assert not FILE.exists()
    assert NAME not in sweep()


def test_b3_the_lock_decides_and_no_process_id() -> None:
    """An owner in another pid namespace, whose number means nothing here: dead, then alive."""
    abandon()
    write_pid(os.getpid())
    assert NAME in sweep()
    with Segment.create(NAME, 10):
        write_pid(abandoned_pid := 2**22 + 1)
        assert NAME not in sweep()
        with pytest.raises(SegmentInUse) as caught:
            Segment.create(NAME, 10)
        assert caught.value.pid == abandoned_pid


def write_pid(pid: int) -> None:
    with FILE.open("r+b") as file:
        file.seek(12)
        file.write(pid.to_bytes(4, "little"))


def test_b3_a_start_that_died_before_it_named_itself_is_replaced_at_once() -> None:
    for stump in (b"", bytes(4096), b"vuproc\0\0"):
        FILE.write_bytes(stump)
        with Segment.create(NAME, 10) as segment:
            assert bytes(segment.buffer) == bytes(10)
    FILE.touch()
    assert NAME in sweep()


def test_b3_one_that_has_not_named_itself_yet_is_left_alone() -> None:
    FILE.touch()
    with FILE.open() as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        assert NAME not in sweep()
        with pytest.raises(SegmentInUse, match="in use by a running vuproc: does it") as caught:
            Segment.create(NAME, 10)
        assert caught.value.pid == 0
    FILE.unlink()


def test_b3_whoever_looks_is_not_taken_for_the_owner() -> None:
    FILE.touch()
    with FILE.open() as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        looked = threading.Timer(0.05, fcntl.flock, (file.fileno(), fcntl.LOCK_UN))
        looked.start()
        with Segment.create(NAME, 10):
            pass
        looked.join()


def test_b3_many_that_want_one_name_at_a_time_have_one_owner() -> None:
    command = [sys.executable, "-c", CONTEND, NAME, APART]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        assert [process.communicate(timeout=30)[0] for process in processes] == ["ok\n"] * 4
    sweep()


def test_b3_a_child_that_executes_something_does_not_keep_the_lock() -> None:
    segment = Segment.create(NAME, 10)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        segment.close()
        assert NAME in sweep()
        child.communicate(timeout=30)


def test_b3_the_segments_of_another_version_are_left_to_it() -> None:
    FILE.write_bytes(b"vuproc\0\0" + (1).to_bytes(4, "little") + bytes(4096))
    assert NAME not in sweep()
    with pytest.raises(ValueError, match="of this version"):
        Segment.attach(NAME)
    FILE.unlink()


@pytest.mark.parametrize("data", [b"", b"something else", bytes(4096)])
def test_foreign_files_are_not_attached(data: bytes) -> None:
    FILE.write_bytes(data)
    with pytest.raises(ValueError, match="not a segment"):
        Segment.attach(NAME)
    FILE.unlink()
    with pytest.raises(FileNotFoundError):
        Segment.attach(NAME)


def test_a_segment_shorter_than_its_header_says_is_not_attached() -> None:
    with Segment.create(NAME, 10000) as segment:
        os.truncate(FILE, HEADER_BYTES + 100)
        with pytest.raises(ValueError, match="shorter"):
            Segment.attach(NAME)
        assert segment.size == 10000


@pytest.mark.parametrize("name", ["", "/other", "/vuproc.a/b", PREFIX + "x" * 300])
def test_names_that_are_not_ours_are_refused(name: str) -> None:
    for make in (Segment.attach, lambda name: Segment.create(name, 10)):
        with pytest.raises(ValueError, match="does not begin with"):
            make(name)


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        Segment.create(NAME, 0)


def test_closing_with_counters_in_use_unmaps_when_they_end() -> None:
    segment = Segment.create(NAME, BLOCK_SIZE)
    counters = QueueCounters(segment, 0)
    segment.unlink()
    segment.close()
    counters.count_kick()
    assert counters.snapshot().kicks == 1
    assert NAME[1:] in Path("/proc/self/maps").read_text()
    counters.release()
    segment.close()
    segment.close()
    assert NAME[1:] not in Path("/proc/self/maps").read_text()


def test_unlinking_twice_is_no_error() -> None:
    segment = Segment.create(NAME, 10)
    segment.unlink()
    segment.unlink()
    segment.close()
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(NAME)


def test_f13_no_room_is_an_error_at_creation() -> None:
    with pytest.raises(SegmentUnavailable, match=r"bytes of shared memory /vuproc.* in /dev/shm: "):
        Segment.create(NAME, 1 << 50)
    assert not FILE.exists()


def test_b3_a_file_that_somebody_else_has_made_is_not_used() -> None:
    """Whoever has it open could change or truncate it under us."""
    FILE.touch()
    with FILE.open("r+b") as theirs:
        with Segment.create(NAME, 10):
            assert not os.path.samestat(os.fstat(theirs.fileno()), FILE.stat())
