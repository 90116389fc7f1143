"""The keeper's standby master, with a puppet in its place: when it comes, takes over, and goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.handover.theatre import BOUND_S, Puppet, Theatre, ended, playing


@contextmanager
def with_standby(folder: Path, **patches: object) -> Iterator[tuple[Theatre, Puppet, Puppet]]:
    """The keeper, a master that is up and has stored something, and its standby, not ready yet."""
    patches = {"SETTLE_S": 0.0, "PAUSES_S": (0.0,), **patches}
    with playing(folder, **patches) as theatre:
        master = theatre.next()
        master.ready()
        master.do("store", ("device-file", "file"), ("session.state", "a"), ("listener", "b"))
        master.wish(True)
        yield theatre, master, theatre.next()


def test_it_has_what_is_in_force_and_nothing_of_the_session(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (_, _, standby):
        assert standby.stored == [["device-file", "file"], ["standby", ""]]
        assert standby.announced_to_it and standby.watched
        assert set(standby.blocked) >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def test_it_takes_over_all_that_is_stored_when_the_master_dies(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        master.do("tell", "FDSTOREREMOVE=1\nFDNAME=listener")
        master.do("store", ("last", "c"))
        master.kill()
        assert standby.take() == [["device-file", "file"], ["session.state", "a"], ["last", "c"]]
        standby.taken()
        # It is the master now: obeyed, and told to end; its end is the end.
        standby.ready()
        standby.do("store", ("one", "more"))
        theatre.process.send_signal(signal.SIGTERM)
        assert standby.signal() == signal.SIGTERM
        standby.send("exit", 0)
        assert theatre.wait() == 0


def test_more_descriptors_than_a_message_has_room_for(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (_, master, standby):
        wanted = [[f"n{number}", str(number)] for number in range(600)]
        master.do("store", *wanted)
        standby.stands_by()
        master.kill()
        assert standby.take()[3:] == wanted


def test_another_one_stands_by_for_one_that_has_taken_over(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        for _ in range(3):
            standby.stands_by()
            master.kill()
            standby.take()
            standby.taken()
            standby.ready()
            standby.wish(True)
            master, standby = standby, theatre.next()
            assert ["standby", ""] in standby.stored


def cold_start(theatre: Theatre, standby: Puppet) -> None:
    """The next master is started with all that is stored, and the standby is gone."""
    cold = theatre.next()
    assert [name for name, _ in cold.stored] == ["device-file", "session.state", "listener"]
    assert ended(standby.pid)


def test_one_that_is_not_ready_is_not_waited_for(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        master.kill()
        cold_start(theatre, standby)


def test_one_that_does_not_take_over_is_replaced(tmp_path: Path) -> None:
    with with_standby(tmp_path, TAKE_OVER_S=0.2) as (theatre, master, standby):
        standby.stands_by()
        master.kill()
        cold_start(theatre, standby)


def test_one_that_is_never_ready_is_killed_and_another_started(tmp_path: Path) -> None:
    with with_standby(tmp_path, READY_S=0.2) as (theatre, _, standby):
        assert ended(standby.pid)
        assert ["standby", ""] in theatre.next().stored


def test_its_end_is_told_once_and_another_comes(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        for _ in range(3):
            standby.stands_by()
            standby.kill()
            standby = theatre.next()
        master.send("exit", 0)
        assert theatre.wait() == 0
        assert ended(standby.pid)
        assert theatre.log().count("the standby master ended (killed by SIGKILL)") == 1


def test_both_may_die_at_once(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        os.kill(theatre.process.pid, signal.SIGSTOP)
        standby.kill()
        master.kill()
        assert ended(standby.pid) and ended(master.pid)
        os.kill(theatre.process.pid, signal.SIGCONT)
        assert [name for name, _ in theatre.next().stored][-1] == "listener"


def test_a_master_that_becomes_another_program_has_none_until_it_is_up(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        master.wish(False)
        assert ended(standby.pid)
        master.ready()
        master.wish(True)
        other = theatre.next()
        other.stands_by()
        master.kill()
        assert other.take()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a10_a_stop_waits_until_it_has_taken_over(tmp_path: Path, number: signal.Signals) -> None:
    """A signal before that is one that it forgets."""
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        # The keeper finds a dead master and a signal in the same turn.
        os.kill(theatre.process.pid, signal.SIGSTOP)
        master.kill()
        assert ended(master.pid)
        theatre.process.send_signal(number)
        os.kill(theatre.process.pid, signal.SIGCONT)
        standby.take()
        assert standby.signals == []
        standby.taken()
        assert standby.signal() == number
        standby.send("exit", 0)
        assert theatre.wait() == 0


def test_it_ends_with_the_device(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        theatre.process.send_signal(signal.SIGTERM)
        assert master.signal() == signal.SIGTERM
        master.send("exit", 0)
        assert theatre.wait() == 0
        assert ended(standby.pid)


def test_it_ends_with_the_keeper(tmp_path: Path) -> None:
    with with_standby(tmp_path) as (theatre, master, standby):
        standby.stands_by()
        theatre.process.kill()
        assert ended(standby.pid)
        assert master.signal() == signal.SIGTERM
        master.send("exit", 0)


def test_it_costs_the_keeper_no_descriptor_for_good(tmp_path: Path) -> None:
    with with_standby(tmp_path, TAKE_OVER_S=BOUND_S) as (theatre, master, standby):
        counts = []
        for _ in range(6):
            standby.stands_by()
            master.kill()
            standby.take()
            standby.taken()
            standby.ready()
            standby.wish(True)
            master, standby = standby, theatre.next()
            counts.append(theatre.fds())
        assert len(set(counts)) == 1
