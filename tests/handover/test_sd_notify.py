"""The service manager's protocol over a real datagram socket, and inherited descriptors."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.fd import Fd
from vuproc.handover import sd_notify
from vuproc.handover.fd_store import FdStore
from vuproc.handover.sd_notify import MAX_STATUS, SEND_DEADLINE, InheritError, Notifier, inherit

BOUND_S = 20.0


class Manager:
    """The other side: a datagram socket that takes messages and descriptors."""

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(BOUND_S)
        self._socket.bind(address)

    @property
    def notify_socket(self) -> str:
        name = self._socket.getsockname()
        return name if isinstance(name, str) else "@" + name[1:].decode()

    def take(self) -> tuple[list[str], list[Fd]]:
        data, ancillary, flags, _ = self._socket.recvmsg(
            65536, socket.CMSG_SPACE(4 * 253), socket.MSG_CMSG_CLOEXEC
        )
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        numbers = array.array("i")
        for _, _, block in ancillary:
            numbers.frombytes(block)
        return data.decode().split("\n"), [Fd(number) for number in numbers]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager("")
    yield made
    made.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    made = Notifier(manager.notify_socket)
    yield made
    made.close()


def test_a7_a_status_is_one_line_whatever_it_says(manager: Manager, notifier: Notifier) -> None:
    assert notifier.status("\ud800 \x1b[2J" + "x" * 100_000)
    (line,) = manager.take()[0]
    assert line.startswith(r"STATUS=\ud800 \x1b[2Jxxx")
    assert len(line) <= len("STATUS=") + MAX_STATUS


def same_file(one: Fd, other: Fd) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())


def test_each_message_is_one_datagram(manager: Manager, notifier: Notifier) -> None:
    assert notifier.ready() and notifier.stopping() and notifier.watchdog()
    assert notifier.status("two\nlines") and notifier.reloading()
    assert manager.take()[0] == ["READY=1"]
    assert manager.take()[0] == ["STOPPING=1"]
    assert manager.take()[0] == ["WATCHDOG=1"]
    assert manager.take()[0] == ["STATUS=two lines"]
    reloading, stamp = manager.take()[0]
    assert reloading == "RELOADING=1"
    assert stamp.startswith("MONOTONIC_USEC=")


def test_a_descriptor_is_stored_under_its_name_and_not_polled(
    manager: Manager, notifier: Notifier
) -> None:
    with Fd(os.memfd_create("content")) as mine:
        assert notifier.store("session.1", mine)
        text, fds = manager.take()
        assert text == ["FDSTORE=1", "FDNAME=session.1", "FDPOLL=0"]
        assert [same_file(fd, mine) for fd in fds] == [True]
        assert not mine.closed
        for fd in fds:
            fd.close()
    assert notifier.remove("session.1")
    assert manager.take() == (["FDSTOREREMOVE=1", "FDNAME=session.1"], [])


def test_more_descriptors_than_a_message_takes_go_in_several(
    manager: Manager, notifier: Notifier
) -> None:
    with Fd(os.open("/dev/null", os.O_RDONLY)) as one:
        assert notifier.store("many", *[one] * 300)
    counts = []
    for _ in range(2):
        _, fds = manager.take()
        counts.append(len(fds))
        for fd in fds:
            fd.close()
    assert counts == [253, 47]


@pytest.mark.parametrize("name", ["", "a:b", "tab\t", "new\nline", "ä", "x" * 256])
def test_a_name_that_the_protocol_cannot_carry_is_refused(notifier: Notifier, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a descriptor"):
        notifier.remove(name)


def test_a_manager_with_a_path(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.notify_socket)
    assert notifier.ready()
    assert manager.take()[0] == ["READY=1"]
    notifier.close()
    manager.close()


def test_a_manager_that_reads_nothing_costs_a_second_and_no_more(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vuproc.master"):
        while notifier.watchdog():
            pass
    assert "took no WATCHDOG=1 for 1 s" in caplog.text


def test_a12_a_manager_that_reads_nothing_costs_that_second_once(
    manager: Manager, notifier: Notifier
) -> None:
    while notifier.watchdog():
        pass
    began = time.monotonic()
    for _ in range(5):
        assert not notifier.watchdog()
    assert time.monotonic() - began < SEND_DEADLINE
    manager.take()
    assert notifier.watchdog()
    assert notifier.active


def test_a_manager_that_has_gone_is_told_nothing_more(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    manager.close()
    with caplog.at_level(logging.WARNING, "vuproc.master"):
        assert not notifier.ready()
    assert not notifier.active
    assert not notifier.watchdog()
    assert caplog.text.count("has gone") == 1


@pytest.mark.parametrize("keeper", [os.getppid(), os.getppid() + 1, None])
def test_a_keeper_alone_is_told_of_standby_masters(manager: Manager, keeper: int | None) -> None:
    environ = {"NOTIFY_SOCKET": manager.notify_socket}
    if keeper is not None:
        environ["VUPROC_KEEPER"] = str(keeper)
    notifier = Notifier.from_environment(environ)
    try:
        assert environ == {}
        assert notifier.keeper == (keeper if keeper == os.getppid() else None)
        assert notifier.standby("1") == (keeper == os.getppid())
        notifier.ready()
        if keeper == os.getppid():
            assert manager.take() == (["X_VUPROC_STANDBY=1"], [])
        assert manager.take() == (["READY=1"], [])
    finally:
        notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier(None)
    assert not notifier.active
    assert not notifier.ready()


def test_an_address_of_another_kind_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vuproc.master"):
        assert not Notifier("vsock:2:1234").active
    assert "not a Unix socket" in caplog.text


def test_the_environment_names_the_manager_and_loses_it(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.notify_socket,
        "WATCHDOG_USEC": "2500000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.from_environment(environ)
    assert notifier.active
    assert notifier.watchdog_s == 2.5
    assert environ == {"HOME": "/"}
    notifier.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "9" * 5000},
    ],
    ids=["absent", "another's", "no number", "zero", "too long"],
)
def test_no_watchdog(environ: dict[str, str]) -> None:
    assert Notifier.from_environment(environ).watchdog_s is None


CHILD = """
import fcntl, os, sys
from vuproc.handover.sd_notify import InheritError, inherit
os.environ["LISTEN_PID"] = sys.argv[1].replace("me", str(os.getpid()))
try:
    for name, fds in inherit().items():
        for fd in fds:
            closed_at_exec = fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            print(name, os.pread(fd.fileno(), 100, 0).decode(), closed_at_exec)
            fd.close()
except InheritError as error:
    print(error)
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def inherited(pid: str, contents: list[str], **environ: str) -> list[str]:
    """What a process sees that is started with a file for each of `contents`, from 3 on."""
    fds = []
    for content in contents:
        fds.append(Fd(os.memfd_create("content")))
        os.write(fds[-1].fileno(), content.encode())
    # dup2 in the child: these numbers may be anything here.
    numbers = [fd.fileno() for fd in fds]
    moves = "".join(
        f"os.dup2({number}, {1000 + at});" for at, number in enumerate(numbers)
    ) + "".join(f"os.dup2({1000 + at}, {3 + at});" for at in range(len(numbers)))
    command = f"[sys.executable, '-c', {CHILD!r}, {pid!r}]"
    start = f"import os, sys; {moves} os.execv(sys.executable, {command})"
    output = subprocess.check_output(
        [sys.executable, "-c", start],
        text=True,
        timeout=30,
        pass_fds=numbers,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
    )
    for fd in fds:
        fd.close()
    return output.splitlines()


def test_inherited_descriptors_come_by_name_and_the_environment_is_cleared() -> None:
    seen = inherited("me", ["a", "b", "c"], LISTEN_FDS="3", LISTEN_FDNAMES="one:two:one")
    assert seen == ["one a 1", "one c 1", "two b 1", "[]"]


def test_without_names_they_are_called_unknown() -> None:
    assert inherited("me", ["a"], LISTEN_FDS="1") == ["unknown a 1", "[]"]


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    assert inherited("1", ["a"], LISTEN_FDS="1", LISTEN_PIDFDID="7") == ["[]"]


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"LISTEN_FDS": "two"}, "LISTEN_FDS='two' is not a number"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS='-1' is not a number"),
        ({"LISTEN_FDS": "4097"}, "LISTEN_FDS=4097 is above 4096"),
        ({"LISTEN_FDS": "9" * 5000}, f"LISTEN_FDS='{'9' * 5000}' is not a number"),
        (
            {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "one:two"},
            "LISTEN_FDNAMES has 2 names for 1 descriptors",
        ),
        ({"LISTEN_FDS": "4000"}, "LISTEN_FDS=4000, but descriptor 4 is closed"),
    ],
)
def test_an_announcement_that_is_wrong_is_refused(environ: dict[str, str], reason: str) -> None:
    assert inherited("me", ["a"], **environ) == [reason, "[]"]


def test_nothing_announced_is_nothing_inherited() -> None:
    assert inherit({}) == {}


def test_the_bounds_hold_what_the_largest_device_has() -> None:
    """509 regions, and kick, call, err and pidfd of 256 queues, and more besides."""
    assert sd_notify.MAX_INHERITED > 509 + 4 * 256 + 256
    with pytest.raises(InheritError, match="above"):
        inherit({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "5000"})


def test_a_stored_descriptor_is_a_copy_of_the_same_open_file(
    manager: Manager, notifier: Notifier
) -> None:
    """flock and file offsets go with it, so a lock survives its holder."""
    with (
        Fd(os.memfd_create("lock")) as mine,
        Fd(os.open("/proc/self/fd/" + str(mine.fileno()), os.O_RDWR)) as other,
    ):
        fcntl.flock(mine.fileno(), fcntl.LOCK_EX)
        notifier.store("lock", mine)
        _, (kept,) = manager.take()
        mine.close()
        with pytest.raises(BlockingIOError):
            fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        kept.close()
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("keeper", ["", str(os.getppid())])
def test_a_service_manager_is_told_to_forget_at_the_end_and_our_keeper_is_not(
    manager: Manager, keeper: str
) -> None:
    """It does so by itself. Had it to read all that of many devices at once, some would warn."""
    notifier = Notifier.from_environment(
        {"NOTIFY_SOCKET": manager.notify_socket, "VUPROC_KEEPER": keeper}
    )
    store = FdStore(notifier, {})
    with Fd(os.memfd_create("kept")) as kept:
        store.keep("listener", kept)
    manager.take()[1][0].close()
    assert not store.goes_with_us
    store.end()
    assert store.goes_with_us == bool(keeper)  # nor are the session's removed then, one by one
    store.clear()
    notifier.status("the last word")
    said = [manager.take()[0] for _ in range(2 if keeper else 3)]
    assert said[0] == ["STOPPING=1"] and said[-1] == ["STATUS=the last word"]
    assert (["FDSTOREREMOVE=1", "FDNAME=listener"] in said) == (not keeper)
    notifier.close()
