"""Our own small virtio-blk in Rust on the crate `vhost-user-backend`, built where cargo can.

The sources are in peers/rust. They are copied to the cache and built there with one job, so that
the checkout stays as it is and other work on the machine goes on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.backends import Missing, Running, Unfit, child
from tests.bench.work import Case, Store
from vuproc.testing.vms import clients

SOURCES = Path(__file__).with_name("rust")
BUILD_TIMEOUT_S = 900.0


class Crate:
    """`preadv` by system calls, `map` by copying from and to a mapping of the image."""

    protocol = "vhost-user-blk"

    def __init__(self, way: str) -> None:
        self.name = self.family = f"rust {way}"
        self._way = way

    def check(self, case: Case) -> None:
        if self._way == "map" and case.store in (Store.DIRECT, Store.NULL):
            raise Unfit("a mapping is neither")
        program()

    @contextmanager
    def start(self, case: Case, image: Path | None, directory: Path) -> Iterator[Running]:
        path = directory / f"rust-{self._way}.sock"
        flags = {
            "map": self._way == "map",
            "direct": case.store is Store.DIRECT,
            "sum": case.work.sums,
        }
        chosen = [flag for flag, wanted in flags.items() if wanted]
        command = [program(), path, image or "null", str(case.queues), *chosen]
        with child(command, path) as running:
            yield running


@functools.cache
def program() -> Path:
    """Build it, unless these sources were built before. Raises Missing."""
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".rs", ".toml"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    built = clients.cache() / "bench" / f"blk-peer-{state}"
    if not built.exists():
        _build(built)
    return built


def _build(target: Path) -> None:
    cargo = shutil.which("cargo") or shutil.which(Path.home() / ".cargo" / "bin" / "cargo")
    if cargo is None:
        raise Missing("there is no cargo here")
    work = target.parent / "blk-peer"
    shutil.copytree(SOURCES, work, dirs_exist_ok=True)
    try:
        done = subprocess.run(
            ["nice", cargo, "build", "--release", "--jobs", "1"],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            env={**os.environ, "CARGO_TARGET_DIR": str(work / "target")},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"cargo did not build it in {BUILD_TIMEOUT_S:g} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["cargo failed"]
        raise Missing(f"cargo cannot build it: {last[0].strip()}")
    finished = target.with_suffix(".part")
    shutil.copy2(work / "target" / "release" / "blk-peer", finished)
    finished.rename(target)
