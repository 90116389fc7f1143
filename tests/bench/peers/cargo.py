"""Peers in Rust are built where cargo can.

Their sources are copied to the cache and built there with one job, so that the checkout stays as it
is and other work on the machine goes on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.bench.backends import Missing
from vuproc.testing.vms import clients

BUILD_TIMEOUT_S = 900.0


@functools.cache
def built(sources: Path, artifact: str) -> Path:
    """What cargo makes of a crate, by its file name; built unless these sources were before. Raises
    Missing.
    """
    files = sorted(path for path in sources.rglob("*") if path.suffix in (".rs", ".toml"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    stem, dot, suffix = artifact.partition(".")
    target = clients.cache() / "bench" / f"{stem}-{state}{dot}{suffix}"
    if not target.exists():
        _build(sources, artifact, target)
    return target


def _build(sources: Path, artifact: str, target: Path) -> None:
    cargo = shutil.which("cargo") or shutil.which(Path.home() / ".cargo" / "bin" / "cargo")
    if cargo is None:
        raise Missing("there is no cargo here")
    work = target.parent / artifact.partition(".")[0]
    shutil.copytree(sources, work, dirs_exist_ok=True)
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
    shutil.copy2(work / "target" / "release" / artifact, finished)
    finished.rename(target)
