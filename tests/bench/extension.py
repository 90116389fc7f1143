"""Native loops of the bench, compiled into the cache when they are first imported: they are the
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
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from vuproc.testing.vms import clients

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = ("-shared", "-fPIC", "-O3", "-Wall", "-Wextra")
SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")


def load(name: str, interfaces: Iterable[Path]) -> ModuleType:
    """The module of tests/bench/NAME.pyx, built anew if it or one of these files has changed.

    RuntimeError without Cython, or if it cannot be built.
    """
    source = HERE / f"{name}.pyx"
    digest = hashlib.sha256(f"{sys.version} {_cython_version()} {FLAGS}".encode())
    for path in (source, *sorted(interfaces)):
        digest.update(path.read_bytes())
    built = clients.cache() / "bench" / f"{name}-{digest.hexdigest()[:16]}{SUFFIX}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as made:
            # Whole at once: others may build it at the same time.
            _build(source, Path(made)).rename(built)
    spec = importlib.util.spec_from_file_location(name, built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cython_version() -> str:
    with contextlib.suppress(ImportError):
        return version("Cython")
    raise RuntimeError("this bench needs Cython: pip install 'vuproc[bench]'")


def _build(source: Path, into: Path) -> Path:
    shutil.copy(source, into)
    made = into / f"{source.stem}{SUFFIX}"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    includes = ("-I", sysconfig.get_path("include"), "-I", str(ROOT / "vuproc" / "shm"))
    _run(into, sys.executable, "-m", "cython", "-3", "-I", str(ROOT), source.name)
    _run(into, *compiler, *FLAGS, *includes, f"{source.stem}.c", "-o", str(made))
    return made


def _run(where: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
