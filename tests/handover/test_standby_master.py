"""A standby master with real processes: who takes over, with what, and what it costs meanwhile."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.processes import family, files_of
from tests.daemon_devices import Mark, MarkOptions
from tests.field.events import BOUND_S, status, wait_until
from tests.field.running import VUPROC, await_made, started, stop, write_file
from tests.handover.test_supervised import (
    DISK,
    ECHO,
    LONG,
    QUEUES,
    SUPERVISED,
    ended,
    kill_master,
    reload,
    verified_io,
)
from tests.process_limit import no_forks
from vuproc import Daemon
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

COLD = ("--supervised", "--no-standby")

pytestmark = pytest.mark.timeout(600 if LONG else 240)


def standby_of(device: Served | Path, *, other_than: int | None = None) -> int:
    """The standby master, once it is ready."""
    found: list[int] = []

    def is_ready() -> bool:
        pid = status(device)["standby_master"]
        found[:] = [pid] if pid not in (None, other_than) else []
        return bool(found)

    wait_until(is_ready, "a standby master")
    return found[0]


@contextmanager
def with_standby(device: object) -> Iterator[tuple[Served, int]]:
    with serve(device, arguments=SUPERVISED) as served:  # type: ignore[arg-type]
        yield served, standby_of(served)


def test_it_takes_over_again_and_again_under_io() -> None:
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for _ in range(20 if LONG else 3):
                    standby = standby_of(served)
                    kill_master(served)
                    one_more()
                    assert status(served)["pid"] == standby
            assert not [line for line in served.lines if "lost" in line]


def test_masters_are_killed_with_a_standby_and_without_one_in_turn() -> None:
    """The one that has just taken over is killed before there can be another standby."""
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for _ in range(10 if LONG else 2):
                    standby = standby_of(served)
                    kill_master(served)
                    one_more()
                    os.kill(standby, signal.SIGKILL)
                    one_more()
                    assert status(served)["pid"] != standby
            assert not [line for line in served.lines if "lost" in line]


def test_one_that_is_killed_is_replaced_and_nobody_notices() -> None:
    with with_standby(DISK) as (served, standby), served.guest() as guest:
        before = status(served)
        os.kill(standby, signal.SIGKILL)
        other = standby_of(served, other_than=standby)
        assert other != standby
        Block(guest).read(0, 512)
        now = status(served)
        assert now["pid"] == before["pid"]
        assert now["queues"][0]["restarts"] == before["queues"][0]["restarts"]
        assert len([line for line in served.lines if "the standby master ended" in line]) == 1


def test_master_and_standby_die_together() -> None:
    with with_standby(DISK) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        Block(guest).write(0, b"x" * 512)
        os.kill(standby, signal.SIGKILL)
        first = kill_master(served)
        assert Block(guest).read(0, 512) == b"x" * 512
        assert status(served)["pid"] not in (first, standby)


def test_it_holds_nothing_of_a_session_and_does_nothing() -> None:
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                standby = standby_of(served)
                before = cpu_ticks(standby)
                one_more()
                held = files_of(standby)
                # Standard input, output, error; two sockets to the keeper, one to its forkserver.
                assert sum(held.values()) == 6, held
                assert held["socket:"] == 3, held
                assert not [name for name in held if "memfd" in name or "pidfd" in name], held
                assert "memfd:" not in Path(f"/proc/{standby}/maps").read_text()
                assert os.readlink(f"/proc/{standby}/cwd") == "/"
                assert cpu_ticks(standby) == before


def cpu_ticks(pid: int) -> list[str]:
    """What a process has used of a CPU, in user and kernel mode."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]


def test_an_upgrade_replaces_it() -> None:
    with with_standby(DISK) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        before = status(served)
        pidfd = os.pidfd_open(standby)
        os.kill(served.pid, signal.SIGUSR2)
        assert ended(pidfd)
        os.close(pidfd)
        wait_until(lambda: status(served)["started"] != before["started"], "the new program")
        other = standby_of(served)
        assert other != standby
        kill_master(served)
        Block(guest).read(0, 512)
        assert status(served)["pid"] == other


def test_it_goes_on_with_the_file_that_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    file = tmp_path / "disk.yaml"
    file.write_text("socket: ./disk.sock\ndevice: {type: blk, image: ./disk.img}\n")
    with with_standby(file) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        Block(guest).read(0, 512)
        file.write_text(file.read_text().replace("blk,", "blk, serial: first,"))
        assert "device.serial" in reload(served)[0]
        served.wait_for_line("every worker is new", BOUND_S)
        file.write_text("nonsense")
        kill_master(served)
        assert status(served)["pid"] == standby
        assert Block(guest).get_id() == "first"


def test_the_code_of_an_author_is_read_as_it_is_at_its_turn(tmp_path: Path) -> None:
    device = tmp_path / "echo.py"
    device.write_text(ECHO.format(answer="old"))
    file = tmp_path / "echo.yaml"
    file.write_text("socket: ./echo.sock\ndevice: {type: './echo.py:Echo'}\n")
    with with_standby(file) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        assert guest.do(in_=[8]).content == b"old"
        device.write_text(ECHO.format(answer="newer"))
        kill_master(served)
        assert status(served)["pid"] == standby
        assert guest.do(in_=[8]).content == b"newer"


def test_a8_signals_to_everybody_are_not_for_it() -> None:
    """Nor are they kept: its turn begins without a reload, an upgrade or an end."""
    with with_standby(DISK) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        helpers = [pid for pid, each in family(served.pid).items() if each.parent == standby]
        assert helpers
        for number in (
            *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT),
            *(signal.SIGTERM, signal.SIGINT),
        ):
            for pid in (standby, *helpers):
                os.kill(pid, number)
        assert standby_of(served) == standby
        kill_master(served)
        Block(guest).read(0, 512)
        now = status(served)
        assert (now["pid"], now["upgrade"]) == (standby, "")
        assert not [line for line in served.lines if "reload" in line or "stopping" in line]


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.1, 0.3] if LONG else [0.0, 0.03, 0.1])
def test_a10_a_stop_around_its_turn_leaves_nothing(tmp_path: Path, delay_s: float) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        with Guest(path) as guest:
            Block(guest).write(0, b"x" * 512)
            standby_of(path)
            os.kill(status(path)["pid"], signal.SIGKILL)
            select.select([], [], [], delay_s)
            code, said = stop(process)
            assert code == 0, said
            assert guest.front_end.closed_by_peer()
    assert os.listdir(tmp_path) == ["disk.yaml"], said


def test_a10_a_stop_with_both_dead_leaves_nothing(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        for pid in (standby_of(path), status(path)["pid"]):
            os.kill(pid, signal.SIGKILL)
        code, said = stop(process)
        assert code == 0, said
    assert os.listdir(tmp_path) == ["disk.yaml"], said


def test_it_ends_with_its_keeper(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        there = [os.pidfd_open(pid) for pid in (standby_of(path), status(path)["pid"])]
        process.kill()
        for pidfd in there:
            assert ended(pidfd)
            os.close(pidfd)
    assert os.listdir(tmp_path) == ["disk.yaml"]


def test_a1_it_takes_over_where_no_process_can_be_had_for_a_master() -> None:
    with with_standby(DISK) as (served, standby), served.guest(timeout_s=BOUND_S) as guest:
        with no_forks(served.pid):
            kill_master(served)
            Block(guest).read(0, 512)
            assert status(served)["pid"] == standby
            served.wait_for_line("no standby master: Resource temporarily unavailable")
        assert standby_of(served) != standby
        assert len([line for line in served.lines if "no standby master" in line]) == 1


def test_there_is_none_if_none_is_wanted() -> None:
    """Not even by the time at which a device that was started later has one."""
    with serve(DISK, arguments=COLD) as served, served.guest(timeout_s=BOUND_S) as guest:
        first = kill_master(served)
        Block(guest).read(0, 512)
        now = status(served)
        assert now["pid"] != first
        with with_standby(DISK):
            children = [
                pid for pid, each in family(served.pid).items() if each.parent == served.pid
            ]
        assert children == [now["pid"]]
        assert status(served)["standby_master"] is None


def test_that_of_a_device_object_takes_over(tmp_path: Path) -> None:
    device = Mark(MarkOptions(mark="first"))
    with Daemon(device, tmp_path / "s", supervised=True):
        standby = standby_of(tmp_path / "s")
        os.kill(status(tmp_path / "s")["pid"], signal.SIGKILL)
        with Guest(tmp_path / "s", timeout_s=BOUND_S) as guest:
            assert guest.do(in_=[16]).content.startswith(b"first")
        assert status(tmp_path / "s")["pid"] == standby
