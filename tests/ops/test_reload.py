"""What a changed device file means for a running device: which key, where, and when."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from vuproc.device_file.changes import Plan, Scope, compare, places
from vuproc.device_file.check import DeviceFile, load
from vuproc.devices.image_lock import WRITER, lock
from vuproc.errors import ConfigErrors
from vuproc.fd import Fd

MIB = 1 << 20

DISK = """
    socket: ./disk.sock
    device:
      type: blk
      image: ./disk.img
      queues: 2
"""

ECHO = """
    from typing import ClassVar
    from vuproc import Device, Options

    class EchoOptions(Options):
        live: ClassVar[frozenset[str]] = frozenset({"greeting"})
        greeting: str = "hello"
        loud: bool = False

    class Echo(Device):
        device_id = 45
        features = 1
        options_type = EchoOptions

        def config_space(self):
            return self.options.greeting.encode()

        def handle(self, request):
            request.finish(0)
"""

ECHO_FILE = """
    socket: ./echo.sock
    device:
      type: ./echo.py:Echo
"""


class Folder:
    """A device file that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = 0

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        # Two versions within the resolution of the clock are two versions.
        self._stamp += 1
        os.utime(path, ns=(self._stamp, self._stamp))

    def image(self, size: int) -> None:
        with open(self.path / "disk.img", "ab") as file:
            file.truncate(size)

    def load(self, text: str) -> DeviceFile:
        self.write("disk.yaml", text)
        return load(self.path / "disk.yaml")

    def plan(self, before: str, after: str) -> Plan:
        old = self.load(before)
        config = old.make_device().config_space()
        return self.compare(old, config, after)

    def compare(self, old: DeviceFile, config: bytes, after: str) -> Plan:
        new = self.load(after)
        return compare(old, new, places(new.path), config=config)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.image(MIB)
    made.write("echo.py", ECHO)
    return made


def lines(plan: Plan) -> list[str]:
    """The texts with the file's name alone."""
    return [change.text.rpartition("/disk.yaml:")[2] for change in plan.changes]


def test_the_same_file_changes_nothing(folder: Folder) -> None:
    plan = folder.plan(DISK, DISK + "    # a comment\n")
    assert plan.changes == ()
    assert plan.later is None and plan.config is None and not plan.new_workers


def test_what_the_master_does_by_itself_is_applied(folder: Folder) -> None:
    after = """
        socket:
          path: ./disk.sock
          permissions: 660
        device: {type: blk, image: ./disk.img, queues: 2}
        log_level: debug
        exit_on_disconnect: true
        stall_timeout: 2.5
    """
    plan = folder.plan(DISK, after)
    assert lines(plan) == [
        "3:3: socket.permissions: 600 becomes 660: applied",
        "5:1: log_level: info becomes debug: applied",
        "6:1: exit_on_disconnect: false becomes true: applied",
        "7:1: stall_timeout: 30.0 becomes 2.5: applied",
    ]
    assert plan.now == folder.load(after)
    assert plan.later is None and plan.config is None and not plan.new_workers


def test_a_key_that_is_gone_stands_where_it_stood_in(folder: Folder) -> None:
    plan = folder.plan(DISK + "      serial: abc\n    log_level: debug\n", DISK)
    assert lines(plan) == [
        "1:1: log_level: debug becomes info: applied",
        '2:1: device.serial: abc becomes "": applied by new workers, one queue at a time',
    ]


@pytest.mark.parametrize("size", [2 * MIB, MIB // 2], ids=["grown", "shrunk"])
def test_an_image_of_another_size_needs_new_workers_and_a_config_change(
    folder: Folder, size: int
) -> None:
    old = folder.load(DISK)
    config = old.make_device().config_space()
    folder.image(size)
    plan = folder.compare(old, config, DISK)
    assert lines(plan) == [
        "4:3: device.image: it is not what it was: applied by new workers, one queue at a time"
    ]
    assert plan.new_workers and plan.later is None
    assert plan.config is not None
    assert int.from_bytes(plan.config[:8], "little") == size // 512
    # The next reload compares with what the device says by now.
    again = folder.compare(plan.now, plan.config, DISK)
    assert again.changes == ()


def test_an_option_that_is_live_needs_new_workers(folder: Folder) -> None:
    plan = folder.plan(DISK, DISK + "      serial: abc\n      cache: writethrough\n")
    assert [change.key for change in plan.changes] == ["device.serial", "device.cache"]
    assert {change.scope for change in plan.changes} == {Scope.WORKERS}
    assert plan.new_workers and plan.config is not None
    assert plan.now.options != folder.load(DISK).options


def test_an_option_that_is_a_list_is_shown_as_one(folder: Folder) -> None:
    cpu = min(os.sched_getaffinity(0))
    plan = folder.plan(DISK, DISK + f"      cpus: [{cpu}]\n")
    assert lines(plan) == [
        f"6:3: device.cpus: nothing becomes [{cpu}]: applied by new workers, one queue at a time"
    ]


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (
            DISK.replace("queues: 2", "queues: 3"),
            "5:3: device.queues: 2 becomes 3: takes effect with the next front-end",
        ),
        (
            DISK + "      queue_size: 64\n",
            "6:3: device.queue_size: 256 becomes 64: takes effect with the next front-end",
        ),
        (
            DISK + "      readonly: true\n",
            "6:3: device.readonly: false becomes true: takes effect with the next front-end",
        ),
        (
            DISK + "    workers: [[0, 1]]\n",
            "6:1: workers: [[0], [1]] becomes [[0, 1]]: takes effect with the next front-end",
        ),
    ],
)
def test_what_a_front_end_relies_on_waits_for_the_next(
    folder: Folder, after: str, line: str
) -> None:
    plan = folder.plan(DISK, after)
    assert lines(plan) == [line]
    assert plan.now == folder.load(DISK)
    assert plan.later == folder.load(after)
    assert not plan.new_workers and plan.config is None


def test_another_socket_needs_a_restart(folder: Folder) -> None:
    plan = folder.plan(DISK, DISK.replace("./disk.sock", "{path: ./other.sock, mode: client}"))
    assert [change.scope for change in plan.changes] == [Scope.RESTART, Scope.RESTART]
    assert (
        lines(plan)[1] == "1:30: socket.mode: server becomes client: takes effect after a restart"
    )
    assert plan.now == folder.load(DISK)
    assert plan.later is not None


def test_another_device_waits_whatever_its_options_are(folder: Folder) -> None:
    plan = folder.plan(DISK, ECHO_FILE.replace("echo.sock", "disk.sock"))
    assert "device.type" in {change.key for change in plan.changes}
    assert {change.scope for change in plan.changes} == {Scope.SESSION}
    assert plan.now == folder.load(DISK)


def test_the_device_part_changes_as_a_whole_and_the_rest_does_not_wait_for_it(
    folder: Folder,
) -> None:
    after = DISK.replace("queues: 2", "queues: 3") + "      serial: abc\n    log_level: debug\n"
    plan = folder.plan(DISK, after)
    assert {change.key: change.scope for change in plan.changes} == {
        "device.queues": Scope.SESSION,
        "device.serial": Scope.SESSION,
        "log_level": Scope.NOW,
    }
    assert plan.now.keys.log_level == "debug"
    assert plan.now.options == folder.load(DISK).options


def test_changed_code_is_imported_by_new_workers(folder: Folder) -> None:
    old = folder.load(ECHO_FILE)
    folder.write("echo.py", ECHO.replace("finish(0)", "finish()"))
    plan = folder.compare(old, b"hello", ECHO_FILE)
    assert lines(plan) == [
        "3:3: device.type: its code has changed: applied by new workers, one queue at a time"
    ]
    assert plan.new_workers and plan.config is None
    assert plan.now.device_type is not old.device_type


def test_changed_code_that_offers_something_else_waits(folder: Folder) -> None:
    old = folder.load(ECHO_FILE)
    folder.write("echo.py", ECHO.replace("features = 1", "features = 3"))
    plan = folder.compare(old, b"hello", ECHO_FILE)
    assert [change.scope for change in plan.changes] == [Scope.SESSION]
    assert plan.now.device_type is old.device_type
    assert not plan.new_workers


def test_a_configuration_space_of_another_length_waits(folder: Folder) -> None:
    same = folder.plan(ECHO_FILE, ECHO_FILE + "      greeting: HELLO\n")
    assert same.new_workers and same.config == b"HELLO"
    longer = folder.plan(ECHO_FILE, ECHO_FILE + "      greeting: hello, you\n")
    assert [change.scope for change in longer.changes] == [Scope.SESSION]
    assert longer.config is None


def test_an_option_that_the_new_code_has_and_the_old_had_not(folder: Folder) -> None:
    old = folder.load(ECHO_FILE)
    folder.write("echo.py", ECHO.replace("loud: bool", "quiet: bool = True\n        loud: bool"))
    plan = folder.compare(old, b"hello", ECHO_FILE)
    assert lines(plan)[0] == (
        "2:1: device.quiet: nothing becomes true: takes effect with the next front-end"
    )


def test_a_file_that_is_wrong_never_comes_this_far(folder: Folder) -> None:
    folder.load(DISK)
    with pytest.raises(ConfigErrors) as caught:
        folder.load(DISK.replace("queues: 2", "queues: two"))
    assert "disk.yaml:5:11: queues:" in str(caught.value)


def test_places_of_a_file_that_has_become_unreadable_are_none(folder: Folder) -> None:
    folder.write("disk.yaml", "a: [")
    assert places(folder.path / "disk.yaml") == {}
    assert places(folder.path / "none.yaml") == {}
    folder.write("disk.yaml", "- a")
    assert places(folder.path / "disk.yaml") == {}


def test_a5_another_file_at_the_images_path_waits_for_the_next_front_end(folder: Folder) -> None:
    old = folder.load(DISK)
    running = old.make_device()
    running.shared = running.shared_files()
    config = running.config_space()

    def plan() -> Plan:
        new = folder.load(DISK)
        return compare(old, new, places(new.path), config=config, shared=running.shared)

    assert plan().changes == ()
    # The open one, by whatever name: that is a live change.
    folder.image(2 * MIB)
    assert [change.scope for change in plan().changes] == [Scope.WORKERS]
    folder.image(MIB)
    (folder.path / "other.img").write_bytes(bytes(2 * MIB))
    os.rename(folder.path / "other.img", folder.path / "disk.img")
    replaced = plan()
    assert lines(replaced) == [
        f"4:3: device.image: another file is at {folder.path}/disk.img now: "
        "takes effect with the next front-end"
    ]
    assert replaced.replaced and not replaced.new_workers and replaced.config is None
    # Another's lock on it is known now, and not when there is no way back.
    with Fd(os.open(folder.path / "disk.img", os.O_RDWR)) as other:
        lock(other, WRITER)
        with pytest.raises(ConfigErrors, match=r"disk\.yaml:4:3: image: .*its lock is held"):
            plan()
    for fd in running.shared.values():
        fd.close()
