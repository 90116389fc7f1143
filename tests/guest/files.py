"""What a Linux guest is told to write into its disk, and how the host looks whether it is there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from vuproc.testing.vms.clients import SEARCH_PATH

CHECK_TIMEOUT_S = 30.0

# Three files of 1 MiB; pseudo-random bytes are slow to make under emulation, so it is done once.
WRITE_FILES = """
mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/tmp/seed bs=65536 count=16 2>/dev/null
for n in 1 2 3; do { echo $n; cat /tmp/seed; } >/mnt/file$n; done
sync
"""
# Whether the guest's rings are packed.
SAY_PACKED = "\nsay packed $(cut -c35 /sys/block/vda/device/features)\n"
SAY_SUMS = """
for n in 1 2 3; do say file$n $(sha256sum </mnt/file$n | cut -d' ' -f1); done
"""


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def check_file_system(image: Path) -> None:
    """Has e2fsck look at everything, changing nothing; it must find no fault."""
    done = subprocess.run(
        [_tool("e2fsck"), "-fn", image],
        capture_output=True,
        text=True,
        timeout=CHECK_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def sum_of(image: Path, name: str) -> str:
    """The checksum of a file in the image's ext4 file system, read by the host itself."""
    done = subprocess.run(
        [_tool("debugfs"), "-R", f"cat /{name}", image],
        capture_output=True,
        timeout=CHECK_TIMEOUT_S,
        check=True,
    )
    return hashlib.sha256(done.stdout).hexdigest()


def sums_of(image: Path) -> dict[str, str]:
    """The checksums of the three files."""
    return {f"file{number}": sum_of(image, f"file{number}") for number in (1, 2, 3)}
