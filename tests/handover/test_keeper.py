"""The keeper with a puppet in the place of the master: what it keeps, when it starts another."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handover.theatre import BOUND_S, Theatre, ended, playing
from vuproc.handover.keeper import PROGRAM, keeper


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    with playing(tmp_path) as made:
        yield made


def test_the_next_master_gets_what_the_last_had_stored(theatre: Theatre) -> None:
    first = theatre.next()
    assert first.stored == [] and first.watched
    first.ready()
    first.do("store", ("one", "a"), ("two", "b"), ("two", "c"), ("gone", "d"))
    first.do("tell", "FDSTOREREMOVE=1\nFDNAME=gone")
    first.kill()
    second = theatre.next()
    assert second.stored == [["one", "a"], ["two", "b"], ["two", "c"]]
    assert second.announced_to_it
    assert second.pid != first.pid


def test_a_master_may_die_with_its_message_still_unread(theatre: Theatre) -> None:
    first = theatre.next()
    first.ready()
    os.kill(theatre.process.pid, signal.SIGSTOP)
    first.send("store-and-die")
    assert ended(first.pid)
    os.kill(theatre.process.pid, signal.SIGCONT)
    assert theatre.next().stored == [["last", "last words"]]


def test_many_deaths_cost_no_descriptor(theatre: Theatre) -> None:
    counts = []
    for number in range(12):
        puppet = theatre.next()
        counts.append(theatre.fds())
        puppet.ready()
        # The numbers move about: each takes the place of another.
        puppet.do("tell", f"FDSTOREREMOVE=1\nFDNAME=n{number % 3}")
        puppet.do("store", (f"n{number % 3}", str(number)))
        assert len(puppet.stored) == min(number, 3)
        puppet.kill()
    assert sorted(theatre.next().stored) == [["n0", "9"], ["n1", "10"], ["n2", "11"]]
    assert counts[3:] == [counts[3]] * 9


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_master_that_never_came_up_ends_it_with_its_code(theatre: Theatre, code: int) -> None:
    theatre.next().send("exit", code)
    assert theatre.wait() == code


def test_a_first_master_that_has_reached_nobody_ends_a_device_alone_with_1(
    theatre: Theatre,
) -> None:
    theatre.next().send("exit", keeper.AWAY)
    assert theatre.wait() == 1


@pytest.mark.parametrize("code", [1, 2, 70])
def test_a_failure_after_one_was_up_starts_another(theatre: Theatre, code: int) -> None:
    first = theatre.next()
    first.ready()
    first.do("store", ("one", "a"))
    first.send("exit", code)
    second = theatre.next()
    assert second.stored == [["one", "a"]]
    second.send("exit", 0)
    assert theatre.wait() == 0


def test_sigterm_goes_to_the_master_and_its_end_is_the_end(theatre: Theatre) -> None:
    puppet = theatre.next()
    puppet.ready()
    theatre.process.send_signal(signal.SIGTERM)
    assert puppet.signal() == signal.SIGTERM
    puppet.send("exit", 0)
    assert theatre.wait() == 0


def test_a10_a_master_that_is_to_end_and_is_killed_is_followed_by_one_that_ends(
    theatre: Theatre,
) -> None:
    first = theatre.next()
    first.ready()
    first.do("store", ("lock", "a"))
    theatre.process.send_signal(signal.SIGINT)
    assert first.signal() == signal.SIGINT
    first.kill()
    second = theatre.next()
    assert second.stored == [["lock", "a"]]
    # It is told as well, and cannot miss it: it was born with the signal blocked.
    assert signal.SIGINT in second.blocked
    assert second.signal() == signal.SIGINT
    second.send("exit", 0)
    assert theatre.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a10_a_signal_in_a_pause_starts_one_that_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    with playing(tmp_path, BACK_OFF_S=(BOUND_S * 2,), STABLE_S=1000.0) as theatre:
        puppet = theatre.next()
        puppet.ready()
        puppet.do("store", ("lock", "a"))
        puppet.send("exit", 70)
        assert "starting another" in theatre.line()
        theatre.process.send_signal(number)
        second = theatre.next()
        assert second.stored == [["lock", "a"]]
        assert second.signal() == number
        second.send("exit", 0)
        assert theatre.wait() == 0


def test_a10_it_gives_up_on_masters_that_do_not_end_in_order(theatre: Theatre) -> None:
    puppet = theatre.next()
    puppet.ready()
    theatre.process.send_signal(signal.SIGTERM)
    for _ in range(keeper.CLEAN_UPS_MOST):
        puppet.kill()
        puppet = theatre.next()
    puppet.send("exit", 5)
    assert theatre.wait() == 5
    assert "may be left" in theatre.log()


def test_a10_one_that_is_to_end_and_does_not_come_up_is_killed(tmp_path: Path) -> None:
    with playing(tmp_path, WATCHDOG_S=0.2, CLEAN_UPS_MOST=1) as theatre:
        first = theatre.next()
        theatre.process.send_signal(signal.SIGTERM)
        assert ended(first.pid)
        assert ended(theatre.next().pid)
        assert theatre.wait() == 1


def test_a10_a_second_signal_goes_to_the_master_too(theatre: Theatre) -> None:
    puppet = theatre.next()
    puppet.ready()
    for _ in range(2):
        theatre.process.send_signal(signal.SIGTERM)
        assert puppet.signal() == signal.SIGTERM
    puppet.send("exit", 0)
    assert theatre.wait() == 0


def test_signals_wait_until_the_master_has_handlers_for_them(theatre: Theatre) -> None:
    puppet = theatre.next()
    passed_on = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2}
    assert set(puppet.blocked) == passed_on
    for number in (signal.SIGHUP, signal.SIGUSR2):
        theatre.process.send_signal(number)
        assert puppet.signal() == number


def test_what_a_dead_master_leaves_is_gone_before_the_next_starts(tmp_path: Path) -> None:
    with playing(tmp_path, ORPHANS_S=BOUND_S) as theatre:
        first = theatre.next()
        first.ready()
        first.send("spawn")
        heard = [first.hear(), first.hear()]
        _, child = next(entry for entry in heard if entry != "done")
        first.kill()
        theatre.next()
        assert not os.path.exists(f"/proc/{child}")


def test_a_stranger_is_not_obeyed(theatre: Theatre) -> None:
    puppet = theatre.next()
    before = theatre.fds()
    puppet.ready()
    puppet.do("store", ("one", "a"))
    environment = Path(f"/proc/{puppet.pid}/environ").read_bytes()
    found = re.search(rb"NOTIFY_SOCKET=@([^\0]+)", environment)
    assert found is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger, open("/dev/null") as file:
        stranger.connect(b"\0" + found[1])
        stranger.send(b"FDSTOREREMOVE=1\nFDNAME=one")
        socket.send_fds(stranger, [b"FDSTORE=1\nFDNAME=mine"], [file.fileno()])
        stranger.send(bytes(9000))
    puppet.do("store", ("two", "b"))
    puppet.kill()
    assert theatre.next().stored == [["one", "a"], ["two", "b"]]
    assert theatre.fds() == before + 2


def test_no_more_is_stored_than_a_master_could_take(tmp_path: Path) -> None:
    with playing(tmp_path, MAX_STORED=3) as theatre:
        puppet = theatre.next()
        puppet.ready()
        puppet.do("store", *[(f"n{number}", str(number)) for number in range(5)])
        puppet.kill()
        assert [name for name, _ in theatre.next().stored] == ["n0", "n1", "n2"]
        theatre.process.send_signal(signal.SIGTERM)


def test_a_session_that_no_master_survives_is_dropped_and_then_it_gives_up(tmp_path: Path) -> None:
    with playing(tmp_path, BACK_OFF_S=(0.0, 0.001), FAILURES_MOST=3, STABLE_S=1000.0) as theatre:
        puppet = theatre.next()
        puppet.ready()
        puppet.do("store", ("session.state", "a"), ("listener", "b"))
        puppet.send("exit", 70)
        seen = []
        for _ in range(7):
            puppet = theatre.next()
            seen.append([name for name, _ in puppet.stored])
            puppet.send("exit", 70)
        assert seen == [["session.state", "listener"]] * 3 + [["listener"]] * 4
        assert theatre.wait() == 70
        assert "no master survives this session" in theatre.log()


def test_the_pause_grows_with_masters_that_fail(tmp_path: Path) -> None:
    with playing(tmp_path, BACK_OFF_S=(0.0, 0.2, 0.4), STABLE_S=1000.0) as theatre:
        puppet = theatre.next()
        puppet.ready()
        pauses = []
        for _ in range(3):
            begun = time.monotonic()
            puppet.send("exit", 70)
            puppet = theatre.next()
            pauses.append(time.monotonic() - begun)
        assert pauses[0] >= 0.2 and pauses[1] >= 0.4 and pauses[2] >= 0.4


def test_a_master_that_was_up_ends_the_pauses(tmp_path: Path) -> None:
    # Another failure in a row would be a pause that nobody waits for.
    with playing(tmp_path, BACK_OFF_S=(0.0, 0.0, BOUND_S * 9), STABLE_S=0.05) as theatre:
        puppet = theatre.next()
        for _ in range(2):
            theatre.process.send_signal(signal.SIGHUP)
            puppet.ready()
            assert puppet.signal() == signal.SIGHUP  # so it is known to be up
            # It has to be so for a while, and nothing announces that it was.
            assert not select.select([], [], [], 0.1)[0]
            puppet.send("exit", 70)
            puppet = theatre.next()
            puppet.send("exit", 70)
            puppet = theatre.next()


def test_a_kill_from_outside_is_no_failure_of_a_master_that_was_up(tmp_path: Path) -> None:
    with playing(tmp_path, BACK_OFF_S=(0.0, BOUND_S * 2), STABLE_S=1000.0) as theatre:
        for _ in range(3):
            puppet = theatre.next()
            puppet.ready()
            puppet.kill()
        theatre.next()


def test_masters_that_make_way_are_no_failures_however_fast(tmp_path: Path) -> None:
    with playing(tmp_path, BACK_OFF_S=(0.0, BOUND_S * 2), STABLE_S=1000.0) as theatre:
        for _ in range(keeper.FAILURES_MOST + 2):
            puppet = theatre.next()
            puppet.ready()
            if not puppet.stored:
                puppet.do("store", ("session.state", "a"))
            puppet.send("exit", keeper.EXIT_MAKES_WAY)
        assert theatre.next().stored == [["session.state", "a"]]


def test_one_that_makes_way_before_it_was_up_has_failed(tmp_path: Path) -> None:
    with playing(tmp_path, BACK_OFF_S=(0.0, 0.2), STABLE_S=1000.0) as theatre:
        puppet = theatre.next()
        puppet.ready()
        puppet.send("exit", keeper.EXIT_MAKES_WAY)
        begun = time.monotonic()
        theatre.next().send("exit", keeper.EXIT_MAKES_WAY)
        theatre.next()
        assert time.monotonic() - begun >= 0.2


def test_a_master_that_shows_no_life_is_killed(tmp_path: Path) -> None:
    with playing(tmp_path, WATCHDOG_S=0.2) as theatre:
        first = theatre.next()
        assert first.watched == "200000"
        first.ready()
        assert ended(first.pid)
        second = theatre.next()
        assert second.pid != first.pid


def test_a_master_that_has_stood_still_with_its_keeper_is_not_killed_for_it(tmp_path: Path) -> None:
    with playing(tmp_path, WATCHDOG_S=1.0, OVERSLEPT_S=0.2) as theatre:
        first = theatre.next()
        before = theatre.fds()
        first.ready()
        first.do("store", ("thing", "content"))
        bound = time.monotonic() + BOUND_S
        while theatre.fds() == before:
            assert time.monotonic() < bound
        # Since the keeper has that, it knows that the master is up.
        os.kill(theatre.process.pid, signal.SIGSTOP)
        until = time.monotonic() + 1.4
        while time.monotonic() < until:
            time.sleep(0.01)
        os.kill(theatre.process.pid, signal.SIGCONT)
        assert "the master has time once more" in theatre.line()
        # It has no more time than that.
        assert "has shown no life" in theatre.line()
        assert ended(first.pid)


def test_the_master_is_told_to_end_when_the_keeper_is_killed(theatre: Theatre) -> None:
    puppet = theatre.next()
    puppet.ready()
    theatre.process.kill()
    assert puppet.signal() == signal.SIGTERM
    puppet.send("exit", 0)


ARRANGE = """
import os, random, sys
sys.path.append(sys.argv[1])
from keeper import descriptors
chance = random.Random(int(sys.argv[2]))
files = [os.memfd_create(str(number)) for number in range(40)]
for number in chance.sample(files, 10):
    os.close(number)
    files.remove(number)
names = {number: os.readlink(f"/proc/self/fd/{number}") for number in files}
# All of them, some twice, in any order.
numbers = chance.sample([*files, *chance.sample(files, 5)], 35)
wanted = [names[number] for number in numbers]
descriptors.arrange(numbers)
found = range(descriptors.FIRST_FD, descriptors.FIRST_FD + len(numbers))
assert [os.readlink(f"/proc/self/fd/{number}") for number in found] == wanted
assert all(os.get_inheritable(number) for number in found)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a3_descriptors_are_arranged_in_any_order(seed: int) -> None:
    folder = str(Path(PROGRAM).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", ARRANGE, folder, str(seed)]
    subprocess.run(command, check=True, timeout=BOUND_S)


ARRANGE_MANY = """
import os, resource, sys
sys.path.append(sys.argv[1])
from keeper import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
numbers = []
try:
    while True:
        numbers.append(os.memfd_create("file"))
except OSError:
    os.close(numbers.pop())
descriptors.arrange(numbers[::-1])
"""


def test_a3_one_free_number_is_enough_to_hand_everything_over() -> None:
    folder = str(Path(PROGRAM).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", ARRANGE_MANY, folder]
    subprocess.run(command, check=True, timeout=BOUND_S)


def test_what_it_was_started_with_goes_to_every_master(tmp_path: Path) -> None:
    """Socket activation: LISTEN_FDS of the keeper itself."""
    content = os.memfd_create("content")
    os.write(content, b"socket")
    inner = [sys.executable, "-I", "-S", PROGRAM]
    start = f"""
import os, sys
os.dup2({content}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="given")
os.execv(sys.executable, {inner!r} + sys.argv[1:])
"""
    outer = tmp_path / "outer.py"
    outer.write_text(start)
    theatre = Theatre(tmp_path, [sys.executable, str(outer)], (content,))
    os.close(content)
    try:
        for _ in range(2):
            puppet = theatre.next()
            assert puppet.stored == [["given", "socket"]]
            puppet.ready()
            puppet.kill()
    finally:
        theatre.close()


def test_it_maps_nothing_of_what_it_keeps(theatre: Theatre) -> None:
    puppet = theatre.next()
    puppet.ready()
    puppet.do("store", *[(f"n{number}", "content") for number in range(20)])
    puppet.kill()
    theatre.next()
    maps = Path(f"/proc/{theatre.process.pid}/maps").read_text()
    assert "memfd:" not in maps
    assert "libpython" in maps or "python" in maps


ALLOWED = {
    "keeper",
    *("array", "ctypes", "fcntl", "os", "resource", "select", "signal", "socket", "struct", "time"),
    # What those import.
    *("_ctypes", "_socket", "_struct", "_signal", "abc", "collections", "enum", "errno", "fcntl"),
    *("functools", "io", "itertools", "keyword", "math", "operator", "posix", "reprlib"),
    *("selectors", "stat", "types", "genericpath", "posixpath", "encodings", "codecs", "zipimport"),
    *("marshal", "_io", "_abc", "_codecs", "_collections", "_collections_abc", "_functools"),
    *("_operator", "_stat", "_frozen_importlib_external", "linecache", "_winapi", "atexit"),
}


def test_it_imports_almost_nothing() -> None:
    command = [sys.executable, "-I", "-S", "-X", "importtime", PROGRAM]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=BOUND_S)
    assert done.returncode == 2
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line]
    imported = {name.partition(".")[0] for name in lines if name != "imported package"}
    assert imported <= ALLOWED, imported - ALLOWED


def test_a_command_that_is_not_there_is_a_failed_start(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", PROGRAM, str(tmp_path / "none")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=BOUND_S)
    assert done.returncode == 127
    assert "No such file" in done.stderr
