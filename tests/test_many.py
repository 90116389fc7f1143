"""Many devices of one command, with real processes: files come and go, and anything dies."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.devices import google_store
from tests.devices.google_store import Google
from tests.devices.nbd_server import Server
from tests.field.events import status
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served

BOUND_S = 60.0
VUPROC = (sys.executable, "-m", "vuproc")
NAMES = ("a", "b", "c")

pytestmark = pytest.mark.timeout(240)


def write(folder: Path, name: str, device: str = "{type: blk, ram: 1MiB}") -> Path:
    file = folder / f"{name}.yaml"
    partial = folder / f".{name}"
    partial.write_text(f"socket: {folder}/{name}.sock\ndevice: {device}\n")
    partial.rename(file)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        write(tmp_path, name)
    return tmp_path


@contextmanager
def running(folder: Path, *words: str, last: str = "c") -> Iterator[Served]:
    """`vuproc run FOLDER`, which is ended by SIGTERM and must leave nothing."""
    command = [*VUPROC, "run", *(words or (str(folder),))]
    served = Served(command, folder / f"{last}.sock")
    try:
        served._await_start()
        for name in NAMES:
            served.wait_for_line(f"vuproc {name}: INFO: serving blk", BOUND_S)
        yield served
        assert served.stop() == 0
        assert sorted(path.name for path in folder.iterdir() if path.is_socket()) == []
    finally:
        served.end()


def vuproc(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*VUPROC, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)


def devices(folder: Path) -> dict[str, Any]:
    done = vuproc("status", "--json", folder)
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["devices"]}


def master(folder: Path, name: str) -> int:
    return int(status(folder / f"{name}.sock")["pid"])


def shared_forkserver(folder: Path) -> int:
    return int(status(folder / "a.sock")["standby_master"])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def group_of(pid: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == pid:
                    found.append(int(entry.name))
            except ProcessLookupError:
                pass
    return found


class Disks:
    """A guest on every device, and data of its own on each."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.disks = {
            name: Block(stack.enter_context(Guest(folder / f"{name}.sock", memory=16 << 20)))
            for name in NAMES
        }
        for name, disk in self.disks.items():
            disk.write(0, name.encode() * 512)

    def check(self) -> None:
        for name, disk in self.disks.items():
            assert disk.read(0, 512) == name.encode() * 512


def test_all_are_served_and_each_can_be_asked(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        Disks(folder, stack).check()
        shown = vuproc("status", folder)
        assert shown.returncode == 0
        for name in NAMES:
            assert f"\n{name}: blk: master {master(folder, name)}, connected" in shown.stdout
        assert "blk: master" in vuproc("status", folder / "b").stdout
        assert f"parent {served.pid}" in shown.stdout
        masters = [master(folder, name) for name in NAMES]
        assert len(set(masters)) == 3
        assert {parent_of(pid) for pid in masters} == {served.pid}
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in masters]
        assert names == ["vuproc a", "vuproc b", "vuproc c"]


def test_a_list_of_files_is_served_until_none_is_left(folder: Path) -> None:
    files = [str(folder / f"{name}.yaml") for name in NAMES]
    served = Served([*VUPROC, "run", *files], folder / "c.sock")
    try:
        for name in NAMES:
            served.wait_for_line(f"vuproc {name}: INFO: serving blk", BOUND_S)
        for file in files:
            assert vuproc("stop", file).stdout == f"{file}: stopped\n"
        assert served.wait(BOUND_S) == 0
    finally:
        served.end()


def test_a_dead_master_is_followed_by_another_and_nobody_else_notices(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        disks = Disks(folder, stack)
        before = {name: master(folder, name) for name in NAMES}
        left = group_of(before["b"])
        for _ in range(3):
            killed = master(folder, "b")
            os.kill(killed, signal.SIGKILL)
            disks.check()
            until(lambda killed=killed: master(folder, "b") != killed)  # type: ignore[misc]
        assert not set(left) & set(group_of(before["b"]))
        assert {name: master(folder, name) for name in "ac"} == {n: before[n] for n in "ac"}
        assert parent_of(master(folder, "b")) == served.pid
        assert not [line for line in served.lines if "disconnected" in line]


def test_a_dead_worker_is_replaced(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        disks = Disks(folder, stack)
        for _ in range(3):
            pid = int(status(folder / "b.sock")["queues"][0]["pid"])
            os.kill(pid, signal.SIGKILL)
            disks.check()
        assert not [line for line in served.lines if "ERROR" in line]


def test_nobody_notices_that_the_shared_forkserver_is_dead(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        disks = Disks(folder, stack)
        before = {name: master(folder, name) for name in NAMES}
        dead = shared_forkserver(folder)
        os.kill(dead, signal.SIGKILL)
        # At once, while there is none.
        os.kill(before["a"], signal.SIGKILL)
        served.wait_for_line("the shared forkserver ended (killed by SIGKILL), starting another")
        disks.check()
        until(lambda: shared_forkserver(folder) not in (0, dead))
        assert master(folder, "a") != before["a"]
        assert [master(folder, name) for name in "bc"] == [before["b"], before["c"]]
        write(folder, "d")
        served.wait_for_line("vuproc d: INFO: serving blk", BOUND_S)


def test_a_forkserver_of_a_device_that_dies_is_replaced(folder: Path) -> None:
    with running(folder), ExitStack() as stack:
        disks = Disks(folder, stack)
        pid = int(status(folder / "b.sock")["queues"][0]["pid"])
        os.kill(parent_of(pid), signal.SIGKILL)
        until(lambda: status(folder / "b.sock")["queues"][0]["pid"] not in (pid, None))
        disks.check()


def test_files_come_and_go(folder: Path) -> None:
    with running(folder) as served:
        before = [master(folder, name) for name in "ac"]
        write(folder, "d")
        served.wait_for_line("vuproc d: INFO: serving blk", BOUND_S)
        (folder / "b.yaml").unlink()
        served.wait_for_line("vuproc b: INFO: received SIGTERM", BOUND_S)
        until(lambda: set(devices(folder)) == {"a", "c", "d"})
        assert not (folder / "b.sock").exists()
        # Another name for the same file: it takes the socket over from itself.
        (folder / "d.yaml").rename(folder / "e.yaml")
        served.wait_for_line("vuproc e: INFO: serving blk", BOUND_S)
        assert [master(folder, name) for name in "ac"] == before


def test_a_wrong_file_is_named_and_the_others_go_on(folder: Path) -> None:
    wrong = write(folder, "0", "{type: blk, imgae: ./x}")
    with running(folder) as served:
        served.wait_for_line(f"{wrong}:2:21: unknown key imgae; did you mean image?")
        served.wait_for_line("vuproc keeper: 0: not served: it ended with exit code 2")
        assert devices(folder)["0"]["state"] == "failed"
        assert "0: failed (exit code 2)" in vuproc("status", folder).stdout
        # Another one changes nothing for it, a change of its own does.
        write(folder, "d", "{type: blk}")
        served.wait_for_line("vuproc keeper: d: not served: it ended with exit code 2")
        assert len([line for line in served.lines if "imgae" in line]) == 1
        write(folder, "0")
        served.wait_for_line("vuproc 0: INFO: serving blk", BOUND_S)


def run_or_reload(folder: Path, *names: str) -> bool:
    """Whether they run; else they are tried again, but one that is in the middle of a try."""
    found = devices(folder)
    if {found[name]["state"] for name in names} == {"running"}:
        return True
    vuproc("reload", folder)
    return False


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """A store with a disk, which is away."""
    with google_store.running() as server, google_store.gated(server) as store:
        store.put("disk.raw", b"h" * (1 << 20))
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.gate.shut()
        yield store


def test_devices_whose_servers_are_away_are_tried_again_and_nobody_waits_for_them(
    folder: Path, store: Google
) -> None:
    (folder / "far").mkdir()
    server = Server(folder / "far" / "nbd", 1 << 20)
    write(folder, "d", f"{{type: blk, nbd: '{server.uri}'}}")
    write(folder, "h", f"{{type: blk, url: '{store.url}/disk.raw'}}")
    nowhere = f"nbd+unix:///?socket={folder}/none"
    for name in "efg":
        write(folder, name, f"{{type: blk, nbd: '{nowhere}'}}")
    with running(folder) as served, ExitStack() as stack:
        disks = Disks(folder, stack)
        before = [master(folder, name) for name in NAMES]
        served.wait_for_line("vuproc keeper: d: not served yet, trying again in 1 s", BOUND_S)
        served.wait_for_line(lambda line: "d.yaml:2:" in line and "No such file" in line)
        assert devices(folder)["d"]["state"] == "waiting"
        assert "\nd: waiting" in vuproc("status", folder).stdout
        served.wait_for_line("vuproc keeper: d: not served yet, trying again in 2 s", BOUND_S)
        # One that waits ends with its file, and is wrong if that is; g is left to wait.
        (folder / "e.yaml").unlink()
        write(folder, "f", "{type: blk, nbd: '1'}")
        served.wait_for_line("vuproc keeper: f: not served: it ended with exit code 2", BOUND_S)
        until(lambda: set(devices(folder)) == {*NAMES, "d", "f", "g", "h"})
        served.wait_for_line("vuproc keeper: h: not served yet, trying again in 1 s", BOUND_S)
        served.wait_for_line(lambda line: "h.yaml:2:" in line and "disk.raw" in line)
        # One that is in the middle of a try is not tried again.
        until(lambda: "d: tried again" in vuproc("reload", folder).stdout)
        server.start()
        stack.callback(server.stop)
        store.gate.open()
        until(lambda: run_or_reload(folder, "d", "h"))
        served.wait_for_line("vuproc d: INFO: serving blk", BOUND_S)
        far = stack.enter_context(Guest(folder / "h.sock", memory=16 << 20))
        assert Block(far).read(0, 512) == b"h" * 512
        disks.check()
        assert [master(folder, name) for name in NAMES] == before
        # It is a device as any other now.
        os.kill(master(folder, "d"), signal.SIGKILL)
        served.wait_for_line("vuproc keeper: d: master ", BOUND_S)


def test_a_running_device_waits_for_a_reload_of_its_changed_file(folder: Path) -> None:
    with running(folder) as served:
        before = master(folder, "b")
        file = write(folder, "b")
        file.write_text(f"{file.read_text()}exit_on_disconnect: true\n")
        (folder / "c.yaml").write_text("nonsense")
        write(folder, "d")
        served.wait_for_line("vuproc d: INFO: serving blk", BOUND_S)
        done = vuproc("reload", folder)
        assert done.returncode == 1
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("b: "))
        assert "exit_on_disconnect" in line and line.endswith("becomes true: applied")
        assert "vuproc: c: " in done.stderr
        assert master(folder, "b") == before


def test_sighup_looks_again_and_reloads_all(folder: Path) -> None:
    with running(folder) as served:
        assert vuproc("stop", folder / "b").returncode == 0
        until(lambda: devices(folder)["b"]["state"] == "stopped")
        for name in "ac":
            file = write(folder, name)
            file.write_text(f"{file.read_text()}log_level: debug\n")
        before = len(served.lines)
        os.kill(served.pid, signal.SIGHUP)
        for name in "ac":
            served.wait_for_line(f"vuproc {name}: INFO: reload: ", BOUND_S, after=before)
        served.wait_for_line("vuproc b: INFO: serving blk", BOUND_S, after=before)


def test_one_is_stopped_and_started_again(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        Disks(folder, stack)
        assert vuproc("stop", folder / "b").stdout == f"{folder}/b: stopped\n"
        until(lambda: devices(folder)["b"]["state"] == "stopped")
        assert not (folder / "b.sock").exists()
        write(folder, "d")
        served.wait_for_line("vuproc d: INFO: serving blk", BOUND_S)
        assert devices(folder)["b"]["state"] == "stopped"
        before = len(served.lines)
        assert "b: started again\n" in vuproc("reload", folder).stdout
        served.wait_for_line("vuproc b: INFO: serving blk", BOUND_S, after=before)


def test_stop_ends_the_command(folder: Path) -> None:
    with running(folder) as served:
        assert vuproc("stop", folder).stdout == f"{folder}: stopped\n"
        assert served.wait(BOUND_S) == 0
    done = vuproc("stop", folder)
    assert done.returncode == 1
    assert "no `vuproc run` of this folder" in done.stderr


def test_all_go_on_with_new_code(folder: Path) -> None:
    with running(folder) as served, ExitStack() as stack:
        disks = Disks(folder, stack)
        before = {name: status(folder / f"{name}.sock") for name in NAMES}
        server = shared_forkserver(folder)
        os.kill(served.pid, signal.SIGUSR2)
        for name in NAMES:
            until(
                lambda name=name: (  # type: ignore[misc]
                    status(folder / f"{name}.sock")["started"] != before[name]["started"]
                )
            )
        until(lambda: shared_forkserver(folder) not in (0, server))
        disks.check()
        # The next master is a fork of the new one.
        pid = master(folder, "a")
        assert pid == before["a"]["pid"]
        os.kill(pid, signal.SIGKILL)
        disks.check()
        assert not [line for line in served.lines if "disconnected" in line]


def test_a_device_of_ones_own(folder: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "examples" / "entropy.py", folder)
    write(folder, "mine", "{type: ./entropy.py:Entropy}")
    with running(folder) as served:
        served.wait_for_line("vuproc mine: INFO: serving ./entropy.py:Entropy", BOUND_S)
        # Its code is imported by each worker: one waits that has done so.
        assert status(folder / "mine.sock")["standby"] is not None
        assert status(folder / "a.sock")["standby"] is None


def test_a_worker_waits_for_each_if_that_is_wanted(folder: Path) -> None:
    with running(folder, "--standby", str(folder)):
        for name in NAMES:
            assert status(folder / f"{name}.sock")["standby"] is not None


def test_all_end_with_their_parent(folder: Path) -> None:
    served = Served([*VUPROC, "run", str(folder)], folder / "c.sock")
    try:
        for name in NAMES:
            served.wait_for_line(f"vuproc {name}: INFO: serving blk", BOUND_S)
        masters = [master(folder, name) for name in NAMES]
        handles = [os.pidfd_open(pid) for each in masters for pid in group_of(each)]
        handles.append(os.pidfd_open(shared_forkserver(folder)))
        os.kill(served.pid, signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], BOUND_S)[0]
            os.close(handle)
        # They were told to end in order, and have.
        assert not [path for path in folder.iterdir() if path.is_socket()]
    finally:
        served.end()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fd", "0"), "--fd is for one device: it has one socket"),
        (("--socket", "/x"), "--socket is for one device: each file says its own"),
        (("missing.yaml",), "there is no such file or folder"),
    ],
)
def test_what_is_for_one_device_is_refused(folder: Path, words: Any, message: str) -> None:
    done = vuproc("run", folder, *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_two_devices_have_two_names(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    write(other, "a")
    done = vuproc("run", folder / "a.yaml", other / "a.yaml")
    assert done.returncode == 2
    assert f"{other}/a.yaml: not served: {folder}/a.yaml has the same name" in done.stderr


def test_a_folder_is_served_once(folder: Path) -> None:
    with running(folder):
        done = vuproc("run", folder)
        assert done.returncode == 1
        assert f"{folder} is served already" in done.stderr
