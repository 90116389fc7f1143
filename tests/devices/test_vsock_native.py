"""A worker of the socket device dies before each store of its native code: every byte arrives.

A child process is the worker for some turns. Its native code is built once more, with a crash point
before each store to the table (tests/crash/crash_points.h).
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from tests.crash.build import COMPILER, HOOK, INCLUDE, ROOT, SUFFIX
from tests.devices.test_vsock_deaths import BUFFER, Session
from tests.devices.vsock_driver import Stream, listening
from tests.devices.vsock_lives import Guest, Life
from vuproc.devices import vsock_table
from vuproc.spec.vsock import Op

pytestmark = pytest.mark.timeout(600)

NAME = "vsock_native"
SOURCE = ROOT / "vuproc" / "devices" / f"{NAME}.pyx"
TURNS = 3
TURNS_MOST = 200
UP, DOWN = (1500, 1, 900), 2500


def built() -> Path:
    """The native code with crash points, in the cache."""
    digest = hashlib.sha256(f"{sys.version} {version('Cython')}".encode())
    interfaces = sorted((ROOT / "vuproc" / "shm").glob("*.pxd"))
    for path in (SOURCE, HOOK, ROOT / "vuproc" / "shm" / "atomics.h", *interfaces):
        digest.update(path.read_bytes())
    home = Path(os.environ.get("VUPROC_CACHE", ROOT / ".cache")) / "crash-units"
    done = home / f"{NAME}-{digest.hexdigest()[:16]}{SUFFIX}"
    if not done.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as made:
            shutil.copy(SOURCE, made)
            run(made, sys.executable, "-m", "cython", "-3", "-I", str(ROOT), SOURCE.name)
            flags = ["-shared", "-fPIC", "-O1", "-w", "-DVUPROC_CRASH_POINTS"]
            for folder in (INCLUDE, ROOT / "vuproc" / "shm", HOOK.parent):
                flags += ["-I", str(folder)]
            run(made, *COMPILER.split(), *flags, f"{NAME}.c", "-o", f"{NAME}{SUFFIX}")
            Path(made, f"{NAME}{SUFFIX}").rename(done)
    return done


def run(where: str, *command: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> ctypes.Array[ctypes.c_int64]:
    """How many stores there were, and before which to die: of the code that the device has now."""
    # Each unit that is loaded looks for them there; nothing of another test is to be found.
    monkeypatch.delenv("VUPROC_CRASH_WORDS", raising=False)
    monkeypatch.setattr(vsock_table, "NativeVsock", load(built()).NativeVsock)
    pid, address = _environment()
    assert pid == os.getpid()
    return (ctypes.c_int64 * 2).from_address(address)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _environment() -> tuple[int, int]:
    """What C has put there, which `os.environ` does not show."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    pid, address = getenv(b"VUPROC_CRASH_WORDS").split()
    return int(pid), int(address, 16)


def work(guest: Guest, words: ctypes.Array[ctypes.c_int64], deadly: int) -> bool:
    """Have a child be the worker for some turns, and die before this store (0: none): whether it
    died.
    """
    words[0], words[1] = 0, deadly
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            # Mappings of guest memory are not inherited. Nothing that had one, of the parent's
            # worker neither, is to give back what is in its place by now.
            gc.disable()
            kept = guest.memory
            guest.map()
            life = Life(guest)
            for _ in range(TURNS):
                life.turn()
            assert kept
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    words[1] = 0
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def play(path: Path, words: ctypes.Array[ctypes.c_int64], deadly: int) -> bool:
    """Data both ways, with a death before a store (0: none); whether it came to that."""
    noise = random.Random(3)
    up, down = [noise.randbytes(size) for size in UP], noise.randbytes(DOWN)
    with ExitStack() as stack:
        session = Session(path, 16)
        stack.callback(session.guest.close)
        listener = stack.enter_context(closing(listening(path, 5)))
        life = Life(session.guest)
        stream = session.connect(5)
        life.turn()
        program = stack.enter_context(closing(listener.accept()[0]))
        program.setblocking(False)
        for _ in range(TURNS):
            life.turn()
        session.see()
        assert stream.peer_alloc == BUFFER
        for part in up:
            stream.sent += len(part)
            stream.say(Op.RW, part, pieces=2)
        program.sendall(down)
        life.leave()
        died = work(session.guest, words, deadly)
        # Whether it died or not: it is gone, and what it knew.
        life = Life(session.guest)
        came = finish(session, life, stream, program, sum(UP))
        assert came == b"".join(up)
        assert bytes(stream.received) == down
        assert not stream.reset
        record = life.device._table.records[0]
        assert (record.skip, record.got, record.passed) == (0, sum(UP), sum(UP))
        life.leave()
    path.unlink()
    return died


def finish(
    session: Session, life: Life, stream: Stream, program: socket.socket, size: int
) -> bytes:
    came = b""
    for _ in range(TURNS_MOST):
        life.turn()
        life.rest()
        session.see()
        try:
            came += program.recv(1 << 16)
        except BlockingIOError:
            pass
        if len(came) >= size and len(stream.received) >= DOWN:
            break
    # Nothing comes twice.
    for _ in range(TURNS):
        life.turn()
        session.see()
    with pytest.raises(BlockingIOError):
        program.recv(1)
    return came


def test_a_death_before_any_store_of_native_code_costs_no_byte(
    tmp_path: Path, words: ctypes.Array[ctypes.c_int64]
) -> None:
    assert not play(tmp_path / "calm", words, 0)
    count = words[0]
    assert count > 30
    died = 0
    for deadly in range(1, count + 1):
        folder = tmp_path / str(deadly)
        folder.mkdir()
        print(f"before store {deadly} of {count}")
        died += play(folder / "v", words, deadly)
    gc.collect()  # a life and its device know each other
    # What the kernel and the driver do may differ from run to run by a store or two.
    assert died > count * 3 / 4
