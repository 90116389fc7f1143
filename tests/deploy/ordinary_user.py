"""A user without rights but with a range of subordinate ids, as rootless containers want it: made
by root for a test, and known to nobody else.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = 4711
LINES = {
    "passwd": f"ordinary:x:{USER}:{USER}::{{home}}:/bin/sh\n",
    "group": f"ordinary:x:{USER}:\n",
    "subuid": "ordinary:2000000:65536\n",
    "subgid": "ordinary:2000000:65536\n",
}
"""What files of /etc say of it."""
ENTER = """\
set -eu
etc=$1 shm=$2 user=$3
shift 3
mount --bind "$etc" /etc
mount --bind "$shm" /dev/shm
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""
"""/etc and /dev/shm are its own, in a mount namespace: the machine's are left as they are."""


@dataclass(frozen=True)
class OrdinaryUser:
    """Runs commands in `home`, which is its own and goes with it."""

    home: Path
    etc: Path

    def command(self, *words: str | Path) -> list[str | Path]:
        """What root runs to have it run these, in the same process: signals come to them."""
        shm = self.home / "shm"
        return ["unshare", "--mount", "sh", "-c", ENTER, "sh", self.etc, shm, str(USER), *words]

    def environment(self) -> dict[str, str]:
        """Ours, with nothing that leads to root's files: PATH may have root's Python."""
        left = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "XDG_", "VUPROC_"))
        }
        return {
            **left,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "VUPROC_CACHE": str(self.home / "cache"),
            "TMPDIR": str(self.home / "tmp"),
        }

    def run(self, *words: str | Path, bound_s: float) -> subprocess.CompletedProcess[str]:
        """A command to its end, with all that it says on standard output."""
        return subprocess.run(
            self.command(*words),
            cwd=self.home,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=bound_s,
            check=False,
        )

    def own(self, *paths: Path) -> None:
        """Have it own what root has put into its home, and whatever is in there."""
        for path in paths:
            for one in (path, *path.rglob("*")):
                os.chown(one, USER, USER, follow_symlinks=False)


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """Skips where there cannot be one."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a user")
    if shutil.which("newuidmap") is None:
        pytest.skip("there is no newuidmap: apt-get install uidmap")
    with pytest.raises(KeyError):
        pwd.getpwuid(USER)
    with tempfile.TemporaryDirectory(prefix="vuproc-ordinary-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        user = OrdinaryUser(folder / "home", folder / "etc")
        subprocess.run(["cp", "--archive", "/etc", user.etc], check=True)
        for file, line in LINES.items():
            with (user.etc / file).open("a") as text:
                text.write(line.format(home=user.home))
        for made in (user.home, *(user.home / name for name in ("run", "cache", "tmp", "shm"))):
            made.mkdir(mode=0o700)
            os.chown(made, USER, USER)
        yield user
