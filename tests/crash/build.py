"""Builds the native units once more, with a crash point before each store to shared memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNITS = (
    *(
        f"vuproc/shm/{name}"
        for name in ("memory", "xen", "counters", "transfers", "uring", "dirty", "iotlb")
    ),
    *(f"vuproc/shm/{name}" for name in ("request", "inflight", "native", "layout", "completions")),
    *(f"vuproc/shm/{name}" for name in ("fetching", "uring_work", "handling", "batch", "batching")),
    *(f"vuproc/shm/{name}" for name in ("spin", "native_serving", "native_pulling", "kick_wait")),
    *(f"vuproc/shm/{name}" for name in ("ring", "split", "packed_record", "packed_fetching")),
    *("vuproc/shm/packed", "vuproc/devices/blk_native", "crash_native"),
)
SOURCES = (
    *("errors.py", "shm/__init__.py", "shm/segment.py", "shm/counter_table.py"),
    "devices/__init__.py",
)
NATIVE = Path(__file__).with_name("crash_native.pyx")
"""The devices that are swept beside the handler in Python."""
# Asked for here: the first call of this module is not safe in several threads.
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
INCLUDE = sysconfig.get_path("include")
COMPILER = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
DAY_S = 86400
HOOK = Path(__file__).with_name("crash_points.h")


def crash_build() -> Path:
    """A directory with a package `vuproc` of the instrumented units, kept for a day after use."""
    inputs = [HOOK, NATIVE, Path(__file__), *(ROOT / "vuproc" / name for name in SOURCES)]
    for folder in (ROOT / "vuproc" / "shm", ROOT / "vuproc" / "devices"):
        inputs += sorted([*folder.glob("*.pyx"), *folder.glob("*.pxd"), *folder.glob("*.h")])
    digest = hashlib.sha256(f"{sys.version} {version('Cython')}".encode())
    for path in inputs:
        digest.update(path.read_bytes())
    home = Path(os.environ.get("VUPROC_CACHE", ROOT / ".cache")) / "crash"
    done = home / digest.hexdigest()[:16]
    if not done.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as made:
            _build(Path(made) / "build")
            _forget_old(home)
            with contextlib.suppress(OSError):  # another run was as quick
                (Path(made) / "build").rename(done)
    if not done.exists():
        raise RuntimeError(f"the build did not get to {done}")
    os.utime(done)
    return done


def _forget_old(home: Path) -> None:
    """Removes what nobody has used for a day; another checkout may share the cache."""
    for old in home.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - DAY_S:
                shutil.rmtree(old, ignore_errors=True)


def _build(into: Path) -> None:
    package = into / "vuproc"
    for name in ("shm", "devices"):
        shutil.copytree(ROOT / "vuproc" / name, package / name, ignore=_only_sources)
    shutil.copy(NATIVE, into)
    (package / "__init__.py").touch()
    for name in SOURCES:
        shutil.copy(ROOT / "vuproc" / name, package / name)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda unit: _compile(into, unit), UNITS))


def _only_sources(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith((".pyx", ".pxd", ".h"))]


def _compile(into: Path, unit: str) -> None:
    source = f"{unit}.pyx"
    target = f"{unit}{SUFFIX}"
    made = ROOT / f"{unit}.c"
    if _is_up_to_date(made):
        shutil.copy(made, into / f"{unit}.c")
    else:
        _run(into, sys.executable, "-m", "cython", "-3", source)
    _run(
        into,
        *COMPILER.split(),
        *("-shared", "-fPIC", "-O0", "-w", "-DVUPROC_CRASH_POINTS"),
        *("-I", INCLUDE, "-I", "vuproc/shm", "-I", str(HOOK.parent)),
        *(source.replace(".pyx", ".c"), "-o", target),
    )


def _is_up_to_date(made: Path) -> bool:
    """Whether the build of the package has translated this unit since any of its kind has changed:
    crash points are for the C compiler alone.
    """
    if not made.exists():
        return False
    sources = [*made.parent.glob("*.pyx"), *(ROOT / "vuproc").rglob("*.pxd")]
    return made.stat().st_mtime > max(source.stat().st_mtime for source in sources)


def _run(where: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
