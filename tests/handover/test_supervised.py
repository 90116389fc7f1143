"""A supervised device with real processes: its master dies, is upgraded and reloads under I/O."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.checked_io import checked_io
from tests.field.events import status
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.shm.segment import sweep
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

LONG = bool(os.environ.get("VUPROC_LONG"))
BOUND_S = 60.0
QUEUES = 2
SPAN = 4 << 20
DISK = {"type": "blk", "ram": "64MiB"}
SUPERVISED = ("--supervised",)

pytestmark = pytest.mark.timeout(600 if LONG else 240)


def kill_master(served: Served) -> int:
    pid = int(status(served.socket)["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def verified_io(served: Served, guest: Guest) -> AbstractContextManager[Callable[[], None]]:
    """Writes and reads on every queue, each block checked; what is given waits for a round more."""
    return checked_io(
        guest,
        queues=QUEUES,
        apart=32 << 20,
        span=SPAN,
        count=1024,
        bound_s=BOUND_S,
        explain=lambda: served.lines[-20:],
    )


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline


def zombies_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if is_zombie(child)]


def is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False  # reaped since it was listed


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_master_makes_way_under_io() -> None:
    """SIGUSR1, as systemd sends it for `systemctl restart`: workers finish what is in flight."""
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for _ in range(10 if LONG else 3):
                    one_more()
                    pid = status(served.socket)["pid"]
                    os.kill(pid, signal.SIGUSR1)
                    wait_until(lambda pid=pid: status(served.socket)["pid"] != pid)  # type: ignore[misc]
                one_more()
        assert any("making way for another master" in line for line in served.lines)
        assert sum("disconnected" in line for line in served.lines) <= 1


def test_no_master_makes_way_if_nobody_would_come_after_it() -> None:
    with serve(DISK, queues=QUEUES) as served:
        os.kill(served.pid, signal.SIGUSR1)
        served.wait_for_line("not making way: nobody would come after us")
        with served.guest(queues=QUEUES) as guest:
            assert Block(guest).read(0, 512) == bytes(512)


def test_the_master_is_killed_every_second_under_io() -> None:
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                one_more()
                # The keeper has heard by then of all that it stores, whatever time that takes.
                wait_until(lambda: status(served.socket)["standby_master"] is not None)
                before = fds_of(served.pid)
                for _ in range(30 if LONG else 5):
                    begun = time.monotonic()
                    kill_master(served)
                    one_more()
                    while time.monotonic() < begun + 1:
                        one_more()
                status(served.socket)
                one_more()
                wait_until(lambda: fds_of(served.pid) <= before + 2)
            assert not [line for line in served.lines if "lost" in line]


def test_an_upgrade_hands_over_under_io() -> None:
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for _ in range(10 if LONG else 2):
                    before = status(served.socket)
                    os.kill(served.pid, signal.SIGUSR2)
                    while (now := status(served.socket))["started"] == before["started"]:
                        one_more()
                    assert now["pid"] == before["pid"]
                    workers = [{queue["pid"] for queue in s["queues"]} for s in (before, now)]
                    assert not workers[0] & workers[1]
                    one_more()
            assert not [line for line in served.lines if "did not stop in order" in line]


def test_without_a_supervisor_there_are_upgrades_too() -> None:
    with serve(DISK, queues=QUEUES) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                command = [sys.executable, "-m", "vuproc", "upgrade", str(served.socket)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
                assert done.returncode == 0, done.stderr
                assert "goes on with the new program" in done.stdout
                one_more()
                wait_until(lambda: not zombies_of(served.pid))


def test_upgraded_code_that_does_not_start_is_refused_and_the_old_goes_on(tmp_path: Path) -> None:
    device = tmp_path / "echo.py"
    device.write_text(ECHO.format(answer="old"))
    file = tmp_path / "echo.yaml"
    file.write_text("socket: ./echo.sock\ndevice: {type: './echo.py:Echo'}\n")
    with serve(file) as served:
        with served.guest() as guest:
            assert guest.do(in_=[8]).content == b"old"
            device.write_text("1/0")
            command = [sys.executable, "-m", "vuproc", "upgrade", str(served.socket)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
            assert done.returncode == 1
            assert "ZeroDivisionError" in done.stderr
            assert guest.do(in_=[8]).content == b"old"
            device.write_text(ECHO.format(answer="new"))
            done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
            assert done.returncode == 0, done.stderr
            assert guest.do(in_=[8]).content == b"new"


def test_a_worker_that_dies_under_a_keeper_is_replaced_once_and_nobody_else() -> None:
    """The keeper has copies of the workers' pidfds, which stay readable."""
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for kills in range(1, 7):
                    os.kill(status(served.socket)["queues"][0]["pid"], signal.SIGKILL)
                    one_more()
                    restarts = [queue["restarts"] for queue in status(served.socket)["queues"]]
                    assert restarts == [kills, 0]
        assert not [line for line in served.lines if "standby" in line]


def test_a_worker_inside_a_request_ends_with_its_master(tmp_path: Path) -> None:
    """It would not look at its control channel before the end of the request."""
    (tmp_path / "busy.py").write_text(BUSY)
    file = tmp_path / "busy.yaml"
    file.write_text("socket: ./busy.sock\ndevice: {type: './busy.py:Busy'}\n")
    command = [sys.executable, "-m", "vuproc", "run", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "serving" in line:
                break
        with Guest(tmp_path / "busy.sock") as guest:
            guest.submit(0, [], [8])
            for line in process.stderr:
                if "busy now" in line:
                    break
            worker = os.pidfd_open(status(tmp_path / "busy.sock")["queues"][0]["pid"])
            process.kill()
            assert ended(worker)
            os.close(worker)
        process.stderr.read()
    # The counters of a master that is killed stay until another one starts.
    sweep()


def ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(BOUND_S * 1000))


def test_a_dead_master_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tempfile.gettempdir()  # ours stays where it is
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serve(DISK, arguments=SUPERVISED) as served:
        kill_master(served)
        with served.guest(timeout_s=BOUND_S) as guest:
            Block(guest).read(0, 512)
        before = status(served.socket)
        os.kill(served.pid, signal.SIGUSR2)
        while status(served.socket)["started"] == before["started"]:
            pass
    assert os.listdir(tmp_path) == []


def test_a_signal_between_two_programs_waits_for_the_new_one() -> None:
    with serve(DISK) as served:
        os.kill(served.pid, signal.SIGUSR2)
        served.wait_for_line("becoming the new program", BOUND_S)
        # And SIGTERM follows at once: the new one ends in order, and leaves nothing.
    assert not served.socket.exists()


def test_a_master_that_dies_with_nobody_connected_is_replaced_with_its_disk() -> None:
    with serve(DISK, arguments=SUPERVISED) as served:
        inode = served.socket.stat().st_ino
        with served.guest() as guest:
            Block(guest).write(0, b"d" * 512)
        first = kill_master(served)
        # The socket is there all the time: a front-end may connect while there is no master.
        with served.guest(timeout_s=BOUND_S) as guest:
            assert Block(guest).read(0, 512) == b"d" * 512
        assert served.socket.stat().st_ino == inode
        assert status(served.socket)["pid"] != first


def test_a_front_end_that_goes_while_there_is_no_master_is_noticed() -> None:
    with serve(DISK, arguments=SUPERVISED) as served:
        with served.guest() as guest:
            Block(guest).read(0, 512)
            kill_master(served)
        served.wait_for_line("front-end disconnected", BOUND_S)
        with served.guest(timeout_s=BOUND_S) as guest:
            Block(guest).read(0, 512)


def test_control_messages_after_a_death_find_everything_in_place() -> None:
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, timeout_s=BOUND_S) as guest:
            block = Block(guest)
            channel = guest.front_end.open_channel()
            before = block.config()
            for queue in range(QUEUES):
                block.write(8 * queue, b"%d" % queue * 512, queue=queue)
            kill_master(served)
            assert block.config() == before
            base = guest.stop_queue(0)
            guest.start_queue(0, base=base)
            kill_master(served)
            for queue in range(QUEUES):
                assert block.read(8 * queue, 512, queue=queue) == b"%d" % queue * 512
            guest.reset()
            assert block.read(0, 512) == b"0" * 512
            assert channel.receive(0) is None


def test_a_device_that_never_came_up_is_not_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "disk.yaml"
    file.write_text("socket: ./disk.sock\ndevice: {type: './none.py:None'}\n")
    command = [sys.executable, "-m", "vuproc", "run", "--supervised", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 2
    assert "keeper" not in done.stderr


BUSY = """
from vuproc import Device
class Busy(Device):
    device_id = 45
    def handle(self, request):
        self.log.info("busy now")
        while True:
            pass
"""

# Reloads.

ECHO = """
from vuproc import Device, Options
class Echo(Device):
    device_id = 45
    def handle(self, request):
        request.write(b"{answer}")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    file = tmp_path / "disk.yaml"
    file.write_text("socket: ./disk.sock\ndevice: {type: blk, image: ./disk.img}\n")
    with serve(file, arguments=SUPERVISED) as served:
        yield served, file


def reload(served: Served) -> list[str]:
    lines: list[str] = ask(served.socket, Request("reload"), BOUND_S)["lines"]
    return lines


def test_a_grown_image_is_announced_and_served(disk: tuple[Served, Path]) -> None:
    served, file = disk
    with served.guest(timeout_s=BOUND_S) as guest:
        block, channel = Block(guest), guest.front_end.open_channel()
        assert block.config()["capacity"] == 2048
        with pytest.raises(OSError, match="status 1"):
            block.read(2048, 512)
        with open(file.parent / "disk.img", "ab") as image:
            image.truncate(2 << 20)
        assert ": device.image: " in reload(served)[0]
        assert channel.receive(BOUND_S) is not None
        assert block.config()["capacity"] == 4096
        block.write(2048, b"g" * 512)
        assert block.read(2048, 512) == b"g" * 512
        # And it stays so.
        kill_master(served)
        assert block.config()["capacity"] == 4096
        assert block.read(2048, 512) == b"g" * 512


def test_an_invalid_file_changes_nothing_and_says_where(disk: tuple[Served, Path]) -> None:
    served, file = disk
    with served.guest(timeout_s=BOUND_S) as guest:
        before = status(served.socket)
        good = file.read_text()
        file.write_text(good + "log_levl: info\n")
        with pytest.raises(AdminError, match=r"disk\.yaml:3:1: .*log_levl"):
            reload(served)
        os.kill(served.pid, signal.SIGHUP)
        served.wait_for_line("reload refused: ", BOUND_S)
        Block(guest).read(0, 512)
        assert status(served.socket)["queues"][0]["pid"] == before["queues"][0]["pid"]


def test_a_successor_goes_on_with_the_file_that_is_in_force(disk: tuple[Served, Path]) -> None:
    served, file = disk
    with served.guest(timeout_s=BOUND_S) as guest:
        Block(guest).read(0, 512)
        file.write_text(file.read_text().replace("blk,", "blk, serial: first,"))
        assert "device.serial" in reload(served)[0]
        served.wait_for_line("every worker is new", BOUND_S)
        in_force = file.read_text()
        file.write_text("nonsense")
        kill_master(served)
        assert Block(guest).get_id() == "first"
        file.write_text(in_force)
        assert reload(served)[0].endswith("nothing has changed")


def test_changed_code_is_served_by_new_workers_without_a_lost_request(tmp_path: Path) -> None:
    device = tmp_path / "echo.py"
    device.write_text(ECHO.format(answer="one"))
    file = tmp_path / "echo.yaml"
    file.write_text("socket: ./echo.sock\ndevice: {type: './echo.py:Echo', queues: 2}\n")
    with serve(file, arguments=SUPERVISED) as served:
        with served.guest(queues=2, timeout_s=BOUND_S) as guest:
            assert guest.do(1, in_=[8]).content == b"one"
            device.write_text(ECHO.format(answer="three"))
            assert "its code has changed" in reload(served)[0]
            served.wait_for_line("every worker is new", BOUND_S)
            assert {guest.do(queue, in_=[8]).content for queue in (0, 1)} == {b"three"}


def test_all_workers_are_replaced_one_by_one_under_io(tmp_path: Path) -> None:
    file = tmp_path / "disk.yaml"
    text = "socket: ./disk.sock\ndevice: {type: blk, ram: 64MiB, queues: 2, serial: one}\n"
    file.write_text(text)
    with serve(file, arguments=SUPERVISED) as served:
        with served.guest(queues=QUEUES, memory=64 << 20) as guest:
            with verified_io(served, guest) as one_more:
                for serial in ("two", "three"):
                    seen = len(served.lines)
                    file.write_text(text.replace("one", serial))
                    assert reload(served)[0].endswith("one queue at a time")
                    served.wait_for_line("every worker is new", BOUND_S, after=seen)
                    one_more()
            assert Block(guest).get_id() == serial
        assert not [line for line in served.lines if "starting another" in line]


def test_new_code_that_cannot_set_up_its_queues_gives_way_to_the_old(tmp_path: Path) -> None:
    device = tmp_path / "echo.py"
    device.write_text(ECHO.format(answer="one"))
    file = tmp_path / "echo.yaml"
    file.write_text("socket: ./echo.sock\ndevice: {type: './echo.py:Echo', queues: 2}\n")
    with serve(file) as served:
        with served.guest(queues=2, timeout_s=BOUND_S) as guest:
            assert guest.do(0, in_=[8]).content == b"one"
            # The first of the new kind starts, the second does not.
            refusing = "    def setup(self, queue):\n        assert queue == 0\n"
            device.write_text(ECHO.format(answer="two") + refusing)
            reload(served)
            served.wait_for_line("the old ones go on", BOUND_S)
            assert guest.do(1, in_=[8]).content == b"one"
            states = [queue["state"] for queue in status(served.socket)["queues"]]
            assert states == ["running", "running"]
            device.write_text(ECHO.format(answer="three"))
            wait_until(lambda: "its code" in reload_when_free(served))
            wait_until(lambda: guest.do(1, in_=[8]).content == b"three")


def reload_when_free(served: Served) -> str:
    try:
        return reload(served)[0]
    except AdminError as error:
        assert "under way" in str(error) or "try again" in str(error)
        return ""


def test_what_waits_for_the_next_front_end_is_there_for_it(disk: tuple[Served, Path]) -> None:
    served, file = disk
    with served.guest(timeout_s=BOUND_S) as guest:
        file.write_text(file.read_text().replace("blk,", "blk, queues: 2,"))
        assert reload(served)[0].endswith("takes effect with the next front-end")
        assert Block(guest).config()["num_queues"] == 1
    served.wait_for_line("beginning anew", BOUND_S)
    with served.guest(queues=2, timeout_s=BOUND_S) as guest:
        assert Block(guest).config()["num_queues"] == 2
        assert Block(guest).read(0, 512, queue=1) == bytes(512)


def test_a_reload_that_waits_does_not_outlive_a_stop(disk: tuple[Served, Path]) -> None:
    """The front-end goes and SIGTERM comes, and the master sees both in the same turn."""
    served, file = disk
    with served.guest(timeout_s=BOUND_S) as guest:
        Block(guest).read(0, 512)
        file.write_text(file.read_text().replace("blk,", "blk, queues: 2,"))
        assert reload(served)[0].endswith("takes effect with the next front-end")
        master = status(served.socket)["pid"]
        os.kill(master, signal.SIGSTOP)
        os.kill(master, signal.SIGTERM)
    os.kill(master, signal.SIGCONT)
    assert served.wait(BOUND_S) == 0
    assert not [line for line in served.lines if "beginning anew" in line]


def test_the_log_level_reaches_everybody(disk: tuple[Served, Path]) -> None:
    served, file = disk
    file.write_text(file.read_text() + "log_level: error\n")
    assert reload(served)[0].endswith("log_level: info becomes error: applied")
    with served.guest() as guest:
        Block(guest).read(0, 512)
    assert reload(served)[0].endswith("nothing has changed")
    assert not [line for line in served.lines if "front-end connected" in line]


def test_a_handshake_may_be_cut_by_a_death_but_the_next_is_not() -> None:
    """A kill at any time of a set-up: it goes through, or the front-end can do it once more."""
    with serve(DISK, queues=QUEUES, arguments=SUPERVISED) as served:
        for attempt in range(40 if LONG else 4):
            killer = threading.Timer(0.004 * attempt, kill_master, [served])
            killer.start()
            try:
                with served.guest(queues=QUEUES, timeout_s=BOUND_S) as guest:
                    Block(guest).read(0, 512)
            except Exception:
                killer.join()
                with served.guest(queues=QUEUES, timeout_s=BOUND_S) as guest:
                    Block(guest).read(0, 512)
            killer.join()


def test_nothing_is_left_when_the_keeper_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "disk.yaml"
    file.write_text("socket: ./disk.sock\ndevice: {type: blk, ram: 1MiB}\n")
    command = [sys.executable, "-m", "vuproc", "run", "--supervised", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "serving" in line:
                break
        master = os.pidfd_open(status(tmp_path / "disk.sock")["pid"])
        process.kill()
        process.stderr.read()
        assert ended(master)
        os.close(master)
    assert sorted(os.listdir(tmp_path)) == ["disk.yaml"]
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "__pycache__")
