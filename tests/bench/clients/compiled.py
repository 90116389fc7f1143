"""The programs in C beside this file: built once into the cache, then told what to do by lines."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.backends import Missing, Running
from tests.bench.clients import Outcome, percentile_ns
from tests.bench.work import Case
from vuproc.testing.vms import clients
from vuproc.testing.vms.errors import ClientMissing

SOURCES = Path(__file__).parent
FLAGS = ["-O2", "-Wall", "-Wextra", "-pthread"]
COMPILERS = "cc", "gcc", "clang"
ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


class Blkio:
    """libblkio, a real virtio-blk driver: a thread a queue, sleeping on the call or polling."""

    name = "libblkio"
    protocols: tuple[str, ...] = ("vhost-user-blk",)

    @contextmanager
    def connect(self, running: Running, case: Case) -> Iterator[Program]:
        try:
            library = clients.libblkio()
        except ClientMissing as missing:
            raise Missing(missing.reason) from missing
        with program("blkio", [library, running.socket, *case.words]) as started:
            yield started


class Nbd:
    """A small client for NBD: a connection and a thread for each queue."""

    name = "nbd"
    protocols: tuple[str, ...] = ("nbd",)

    @contextmanager
    def connect(self, running: Running, case: Case) -> Iterator[Program]:
        with program("nbd", [running.socket, *case.words]) as started:
            yield started


class Program:
    """A running one, ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._line()

    def pids(self) -> list[int]:
        return [self._process.pid]

    def run(self, count: int) -> Outcome:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        found = json.loads(self._line())
        return Outcome(
            found["completed"],
            found["failed"],
            found["seconds"],
            percentile_ns(found["latency"], 50),
            percentile_ns(found["latency"], 99),
        )

    def _line(self) -> str:
        """The next line of its output; it writes one at a time, so none is buffered here before."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        if poll.poll((deadline - time.monotonic()) * 1000):
            line = self._process.stdout.readline()
            if line:
                return line
            why = self._log.read_text(errors="replace").strip() or "it ended"
        else:
            why = f"no answer within {ANSWER_TIMEOUT_S:g} s"
        raise Missing(f"{Path(self._process.args[0]).name}: {why}")  # type: ignore[index,arg-type]


@contextmanager
def program(name: str, arguments: Sequence[str | Path]) -> Iterator[Program]:
    """Start one of them until the end of the context. Raises Missing."""
    with tempfile.NamedTemporaryFile(prefix="vuproc-bench-", suffix=".log") as log:
        process = subprocess.Popen(
            [build(name), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                yield Program(process, Path(log.name))
                assert process.stdin is not None
                process.stdin.close()
                process.wait(STOP_TIMEOUT_S)
            finally:
                process.kill()


@functools.cache
def build(name: str) -> Path:
    """Compile one, unless these sources were built before. Raises Missing."""
    compiler = _compiler()
    sources = sorted([*SOURCES.glob("*.h"), SOURCES / f"{name}.c"])
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    state.update(shlex.join([*compiler, *FLAGS]).encode())
    built = clients.cache() / "bench" / f"{name}-{state.hexdigest()[:16]}"
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    part = built.with_name(f"{built.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, "-o", str(part), str(SOURCES / f"{name}.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{name}.c does not compile: {done.stderr.strip()[:200]}")
    part.rename(built)
    return built


def _compiler() -> list[str]:
    if named := os.environ.get("CC"):
        return shlex.split(named)
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise Missing("there is no C compiler here")
