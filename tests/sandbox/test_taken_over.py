"""A worker that was taken over reaches nothing but what its device needs. Every claim of
docs/sandbox.md has its test here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from tests.sandbox.taken import Connected, OnThisMachine, Opening, Ringed, Taken, Threaded
from vuproc.shm.segment import sweep
from vuproc.testing.errors import ServeFailed
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served, serve

BOUND_S = 30.0
ANSWER_BYTES = 4096
STANDARD = {"sandbox": "standard"}
EPERM, EACCES = "PermissionError: [Errno 1]", "PermissionError: [Errno 13]"


def do(guest: Guest, code: str, queue: int = 0) -> str:
    """What comes of such code in the worker of `queue`."""
    done = guest.do(queue, [dedent(code).encode()], [ANSWER_BYTES], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


@contextmanager
def ended(pid: int) -> Iterator[None]:
    """At the end the process is gone, or the test fails."""
    pidfd = os.pidfd_open(pid)
    try:
        yield
        assert select.select([pidfd], [], [], BOUND_S)[0], f"{pid} lives"
    finally:
        os.close(pidfd)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("another guest's disk")
    return path


# Files.


@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_no_other_file_is_opened(vuproc_device: ServeDevice, secret: Path, mode: str) -> None:
    with vuproc_device(Taken, file={"sandbox": mode}).guest() as guest:
        for flags in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_RDONLY | os.O_PATH * 0"):
            assert do(guest, f"import os; os.open({str(secret)!r}, os.{flags})").startswith(EACCES)
        assert do(guest, "import os; os.listdir('/')").startswith(EACCES)
        assert do(guest, "open('/etc/passwd')").startswith(EACCES)
        assert do(guest, "open('/proc/1/environ')").startswith(EACCES)
    assert secret.read_text() == "another guest's disk"


@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_no_file_is_made_changed_or_removed(
    vuproc_device: ServeDevice, secret: Path, mode: str
) -> None:
    before = os.stat(secret), secret.parent.stat()
    path = str(secret)
    with vuproc_device(Taken, file={"sandbox": mode}).guest() as guest:
        for code in (
            f"os.open({path + '.new'!r}, os.O_CREAT | os.O_WRONLY)",
            f"os.truncate({path!r}, 0)",
            f"os.unlink({path!r})",
            f"os.rename({path!r}, {path + '.new'!r})",
            f"os.link({path!r}, {path + '.new'!r})",
            f"os.symlink({path!r}, {path + '.new'!r})",
            f"os.mkdir({path + '.new'!r})",
            f"os.mkfifo({path + '.new'!r})",
            f"os.chmod({path!r}, 0o777)",
            f"os.chown({path!r}, 12, 12)",
            f"os.utime({path!r}, (1, 1))",
            f"os.setxattr({path!r}, 'user.x', b'x')",
        ):
            answer = do(guest, f"import os; {code}")
            assert answer.startswith((EPERM, EACCES)), code
    assert os.listdir(secret.parent) == [secret.name]
    after = os.stat(secret), secret.parent.stat()
    assert [(s.st_mode, s.st_uid, s.st_mtime_ns, s.st_size) for s in before] == [
        (s.st_mode, s.st_uid, s.st_mtime_ns, s.st_size) for s in after
    ]


def test_what_was_opened_in_setup_stays_open(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Opening, file=STANDARD).guest() as guest:
        expected = Path("/etc/hostname").read_bytes()
        assert do(guest, "answer = device.kept['file'].read()") == repr(expected)
        assert do(guest, "open('/etc/hostname')").startswith(EACCES)


def test_strict_has_nothing_opened_in_setup_that_was_not_asked_for(
    vuproc_device: ServeDevice,
) -> None:
    wanted = {"mode": "strict", "readable": ["/etc/hostname"]}
    served = vuproc_device(Opening, file={"sandbox": wanted})
    with served.guest() as guest:
        assert "PermissionError" not in do(guest, "answer = device.kept['file'].read()")


def test_files_that_the_device_file_names_are_there(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    folder, readable = tmp_path / "folder", tmp_path / "readable"
    folder.mkdir()
    readable.write_text("yes")
    wanted = {"mode": "strict", "files": [str(folder)], "readable": [str(readable)]}
    with vuproc_device(Taken, file={"sandbox": wanted}).guest() as guest:
        assert do(guest, f"answer = open({str(readable)!r}).read()") == "'yes'"
        assert do(guest, f"open({str(readable)!r}, 'w')").startswith(EACCES)
        made = f"import os; answer = open({str(folder / 'new')!r}, 'w').write('made')"
        assert do(guest, made) == "4"
    assert (folder / "new").read_text() == "made"


# The network.


@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_no_socket_is_made(vuproc_device: ServeDevice, mode: str) -> None:
    with vuproc_device(Taken, file={"sandbox": mode}).guest() as guest:
        for family, kind in (
            ("AF_INET", "SOCK_STREAM"),
            ("AF_INET6", "SOCK_DGRAM"),
            ("AF_UNIX", "SOCK_STREAM"),
            ("AF_UNIX", "SOCK_DGRAM"),
            ("AF_PACKET", "SOCK_RAW"),
            ("AF_NETLINK", "SOCK_RAW"),
            ("AF_VSOCK", "SOCK_STREAM"),
        ):
            code = f"import socket as s; s.socket(s.{family}, s.{kind})"
            assert do(guest, code).startswith(EPERM), family
        code = "import socket as s; s.socketpair(s.AF_UNIX, s.SOCK_DGRAM)"
        assert do(guest, code).startswith(EPERM)


def test_unix_is_for_sockets_of_this_machine(vuproc_device: ServeDevice, tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with vuproc_device(OnThisMachine, file=STANDARD).guest() as guest:
            code = f"import socket as s; x = s.socket(s.AF_UNIX); x.connect({path!r}); answer = 1"
            assert do(guest, code) == "1"
            assert do(guest, "import socket as s; s.socket(s.AF_INET)").startswith(EPERM)


def test_a_device_that_says_so_has_a_network(vuproc_device: ServeDevice) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with vuproc_device(Connected, file=STANDARD).guest() as guest:
            code = f"""
                import socket
                with socket.create_connection(("127.0.0.1", {port})): answer = 1
            """
            assert do(guest, code) == "1"


def test_with_io_uring_the_network_is_one_of_its_own(vuproc_device: ServeDevice) -> None:
    """No filter sees what io_uring does."""
    served = vuproc_device(Ringed, file=STANDARD)
    worker = served.wait_worker()
    assert os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net")
    with served.guest() as guest:
        assert do(guest, "kernel = __import__('vuproc.sandbox.kernel').sandbox.kernel; "
                         "kernel.call(425, 0, 0)").startswith("OSError: [Errno 14]")  # fmt: skip


def test_without_it_there_is_no_io_uring(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Taken, file=STANDARD).guest() as guest:
        code = "from vuproc.shm.uring import Uring; Uring(8, [0])"
        assert "UringUnavailable" in do(guest, code)


# Other processes.


@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_no_other_process_gets_a_signal(vuproc_device: ServeDevice, mode: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        served = vuproc_device(Taken, file={"sandbox": mode})
        with served.guest() as guest:
            for target in (other.pid, served.pid, -1, 0, 1):
                assert do(guest, f"import os; os.kill({target}, 9)").startswith(EPERM)
                assert do(guest, f"import os; os.kill({target}, 0)").startswith(EPERM)
            code = f"import os; os.pidfd_open({other.pid})"
            assert do(guest, code).startswith(EPERM)
        assert other.poll() is None
        other.communicate(b"\n")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ptrace", "kernel.call({ptrace}, 16, {pid})"),  # PTRACE_ATTACH
        ("process_vm_readv", "kernel.call({process_vm_readv}, {pid})"),
        ("process_vm_writev", "kernel.call({process_vm_writev}, {pid})"),
        ("pidfd_getfd", "kernel.call({pidfd_getfd}, 0)"),
        ("execve", "import os; os.execv('/bin/true', ['true'])"),
        ("unshare", "kernel.call({unshare}, 0x10000000)"),
        ("mount", "kernel.call({mount})"),
        ("bpf", "kernel.call({bpf})"),
    ],
)
def test_a_strange_call_ends_the_worker_and_is_named(
    vuproc_device: ServeDevice, name: str, code: str
) -> None:
    from vuproc.spec.system_calls import numbers

    served = vuproc_device(Taken, file=STANDARD)
    worker = served.wait_worker()
    filled = code.format(pid=os.getpid(), **numbers())
    before = "from vuproc.sandbox import kernel; import os; "
    once = f"{before}\nif device.recovered: answer = 'well'\nelse: {filled}"
    with served.guest() as guest:
        assert do(guest, once) == "'well'"
    line = served.wait_for_line("SIGSYS")
    assert f"worker {worker} ended (killed by SIGSYS: the sandbox has no {name} at " in line
    assert "see docs/sandbox.md" in line
    assert served.status().queues[0].restarts == 1


def test_no_process_is_started(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Taken, file=STANDARD).guest() as guest:
        assert do(guest, "import os; os.fork()").startswith(EPERM)
        code = "import subprocess; subprocess.run(['/bin/true'])"
        assert "PermissionError" in do(guest, code) or "BlockingIOError" in do(guest, code)
        code = """
            import threading
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            answer = "a thread is"
        """
        assert do(guest, code) == "'a thread is'"


def test_no_memory_of_another_process_is_read(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Taken, file=STANDARD)
    with served.guest() as guest:
        for pid in (served.pid, os.getpid()):
            assert do(guest, f"open('/proc/{pid}/mem', 'r+b')").startswith(EACCES)
            assert do(guest, f"import os; os.listdir('/proc/{pid}/fd')").startswith(EACCES)


def test_powers_are_gone_for_good(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Taken, file=STANDARD)
    lines = Path(f"/proc/{served.wait_worker()}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_a_user_namespace_is_its_own(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Taken, queues=2, file=STANDARD)
    spaces = {os.readlink(f"/proc/{served.wait_worker(queue)}/ns/user") for queue in (0, 1)}
    assert len(spaces) == 2
    assert os.readlink("/proc/self/ns/user") not in spaces


# Whoever comes after it.


def test_it_does_not_outlive_the_master() -> None:
    try:
        with (
            pytest.raises(ServeFailed, match="exit code -9"),
            serve(Taken, file=STANDARD) as served,
        ):
            _kill_the_master_of(served)
    finally:
        sweep()


def _kill_the_master_of(served: Served) -> None:
    worker = served.wait_worker()
    with served.guest() as guest:
        code = """
            import signal
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                if number < 32: signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            answer = 1
        """
        assert do(guest, code) == "1"
        code = "from vuproc.sandbox import kernel; kernel.prctl(1, 0)"  # PR_SET_PDEATHSIG
        assert do(guest, code).startswith(EPERM)
        # It is deaf, and busy for ever.
        guest.submit(0, [b"while True: pass"], [64])
        with ended(worker):
            os.kill(served.status().pid, signal.SIGKILL)


def test_records_of_other_queues_are_out_of_reach(vuproc_device: ServeDevice) -> None:
    """What it has mapped of the in-flight records is its own queue's, and it has no file to map
    more.
    """
    served = vuproc_device(Taken, queues=2, file=STANDARD)
    with served.guest(queues=2) as guest:
        do(guest, "answer = 1", 0)
        do(guest, "answer = 1", 1)
        ranges = [_record_ranges(served.wait_worker(queue)) for queue in (0, 1)]
        for queue in (0, 1):
            links = _links(served.wait_worker(queue))
            assert not [link for link in links if "vuproc-inflight" in link]
    assert all(len(found) == 1 for found in ranges)
    (one,), (other,) = ranges
    assert one[1] <= other[0] or other[1] <= one[0]


def _record_ranges(pid: int) -> list[tuple[int, int]]:
    """Where in the file of the records it has mapped something: begin and end, in bytes."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "vuproc-inflight" in line:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            offset = int(line.split()[2], 16)
            found.append((offset, offset + last - first))
    return found


def _links(pid: int) -> list[str]:
    return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]


# What it does not cost.


def test_modules_are_imported_late_and_mistakes_have_their_lines(
    vuproc_device: ServeDevice,
) -> None:
    with vuproc_device(Taken, file=STANDARD).guest() as guest:
        assert do(guest, "import decimal; answer = decimal.Decimal(1)") == "Decimal('1')"
        assert do(guest, "import zoneinfo; answer = str(zoneinfo.ZoneInfo('UTC'))") == "'UTC'"
        assert (
            do(guest, "import ctypes; answer = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 5)()") == "5"
        )


def test_a_refusal_in_the_log_leads_to_the_docs(vuproc_device: ServeDevice) -> None:
    from tests.sandbox.opener import Opener

    served = vuproc_device(Opener, file=STANDARD)
    with served.guest() as guest:
        guest.do(0, [b"/etc/passwd"], [8], timeout_s=BOUND_S)
    line = served.wait_for_line("Opener.handle")
    assert "Permission denied" in line
    assert "the sandbox may have refused it, see docs/sandbox.md" in line


def test_off_is_off(vuproc_device: ServeDevice, secret: Path) -> None:
    served = vuproc_device(Taken, file={"sandbox": "off"})
    with served.guest() as guest:
        assert do(guest, f"answer = open({str(secret)!r}).read()") == repr(secret.read_text())
    assert served.status().sandbox == "off"
    status = Path(f"/proc/{served.wait_worker()}/status").read_text()
    assert "NoNewPrivs:\t0" in status


def test_the_status_says_which(vuproc_device: ServeDevice) -> None:
    status = vuproc_device(Taken, file={"sandbox": "strict"}).status()
    assert status.sandbox == "strict"
    assert status.sandbox_lacks == []
    assert "sandbox: strict\n" in status.table()


def test_threads_of_setup_are_said(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Threaded, file=STANDARD)
    with served.guest() as guest:
        assert do(guest, "answer = 1") == "1"
    assert served.status().sandbox_lacks == [
        "user namespace: the device has started threads in setup",
        "files (Landlock) and capabilities: not for 1 thread that the device has started in setup",
    ]
