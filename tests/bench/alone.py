"""The loops of alone.pyx, compiled into the cache when they are first imported: they are the
bench's own, so no installed vuproc has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Protocol

from typing_extensions import Buffer

from vuproc.testing.job import Job
from vuproc.testing.vms import clients

ROOT = Path(__file__).parents[2]
SOURCES = (Path(__file__).with_suffix(".pyx"), ROOT / "vuproc" / "shm" / "clock.pxd")
FLAGS = ("-shared", "-fPIC", "-O3", "-Wall", "-Wextra")
SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")


class Handle(Protocol):
    """A device's `handle`."""

    def __call__(self, request: object) -> None: ...


def read_blocks(fd: int, memory: Buffer, *, arena: int, job: Job) -> float:
    """Read `job.count` blocks of the file into guest memory from byte `arena` on; the seconds."""
    return float(_native.read_blocks(fd, memory, arena=arena, job=job))


def ring_and_wait(ours: int, theirs: int, count: int) -> float:
    """Write the eventfd `ours` and sleep until `theirs` is written, `count` times; the seconds."""
    return float(_native.ring_and_wait(ours, theirs, count))


def answer(ours: int, theirs: int, life: int) -> None:
    """The other side of `ring_and_wait`, until `life` is readable or closed by its other end."""
    _native.answer(ours, theirs, life)


def _load() -> ModuleType:
    digest = hashlib.sha256(f"{sys.version} {_cython_version()} {FLAGS}".encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    built = clients.cache() / "bench" / f"alone-{digest.hexdigest()[:16]}{SUFFIX}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as made:
            # Whole at once: others may build it at the same time.
            _build(Path(made)).rename(built)
    spec = importlib.util.spec_from_file_location("alone", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cython_version() -> str:
    with contextlib.suppress(ImportError):
        return version("Cython")
    raise RuntimeError("this bench needs Cython: pip install 'vuproc[bench]'")


def _build(into: Path) -> Path:
    shutil.copy(SOURCES[0], into)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = sysconfig.get_path("include")
    _run(into, sys.executable, "-m", "cython", "-3", "-I", str(ROOT), "alone.pyx")
    _run(into, *compiler, *FLAGS, "-I", include, "alone.c", "-o", f"alone{SUFFIX}")
    return into / f"alone{SUFFIX}"


def _run(where: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


_native = _load()
ignore: Handle = _native.ignore
"""A device's `handle` in native code that does nothing."""
