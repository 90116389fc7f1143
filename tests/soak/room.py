"""The soak's own file systems: small ones, which can be filled without anybody else noticing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHM = Path("/dev/shm")
SHM_BYTES = 256 << 10
DISK_BYTES = 4 << 20
_MARK = "VUPROC_SOAK_ROOM"
_UNSHARE = ("unshare", "--mount")
"""In a mount namespace: what is mounted there is there for us alone, and gone with us."""
_AS_ROOT = "--map-root-user"
_SPARE = 4096
CHUNK = 64 << 10
COMMAND_S = 120
"""For unshare(1), mount(8) and umount(8), on a machine that stands still for a while."""


def enter(module: str, arguments: Sequence[str]) -> str | None:
    """Begin anew in a mount namespace, unless we have; why there is none, in words."""
    if _MARK in os.environ:
        return os.environ[_MARK] or None
    reason = "no unshare(1)"
    for command in _UNSHARE, (*_UNSHARE, _AS_ROOT):
        try:
            subprocess.run([*command, "true"], check=True, capture_output=True, timeout=COMMAND_S)
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", b"") or b"").decode(errors="replace") or str(error)
            continue
        os.environ[_MARK] = ""
        os.execvp(command[0], [*command, sys.executable, "-m", module, *arguments])
    return f"no mount namespace of our own: {reason.strip()}"


class Room:
    """Where the device's files are. `without`: why /dev/shm and the disk are everybody's."""

    def __init__(self, folder: Path, without: str | None) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.without = without
        if without is None:
            _mount(SHM, SHM_BYTES)
            _mount(self.disk, DISK_BYTES)

    @property
    def segments(self) -> int:
        """How many files /dev/shm has."""
        return len(os.listdir(SHM))

    @contextmanager
    def full(self, where: Path) -> Iterator[None]:
        """Have no byte left on one of our own file systems."""
        filler = where / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    if not file.write(bytes(CHUNK)):
                        break
            except OSError:
                pass
            try:
                while file.write(bytes(_SPARE)):
                    pass
            except OSError:
                pass  # ENOSPC, as wanted
        try:
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        """Give our own disk back; /dev/shm goes with the namespace."""
        if self.without is None:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True, timeout=COMMAND_S)


def _mount(where: Path, size: int) -> None:
    options = f"size={size},mode=1777"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True, timeout=COMMAND_S
    )
