"""A machine that systemd runs, as namespaces of this one's kernel: processes, mounts, network,
control groups, names. It takes root, and a cgroup v2 hierarchy; not that systemd runs this machine.

What systemd could change of the machine itself is mounted for reading (/sys, /proc/sys), or needs
what the namespaces' root has not: modules, the clock, raw devices.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.systemd import root
from vuproc.testing.vms import ClientMissing
from vuproc.testing.vms.ending import Ending
from vuproc.testing.vms.process import GuestProcess

WITHOUT = ("sys_module", "sys_rawio", "sys_time", "syslog", "wake_alarm", "mac_admin")
"""Capabilities that nobody in there has."""
NODES = {
    "null": "1 3",
    "zero": "1 5",
    "full": "1 7",
    "random": "1 8",
    "urandom": "1 9",
    "tty": "5 0",
}

UNSHARE = (
    "unshare",
    *("--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net"),
    *("--kill-child", "--propagation", "private"),
)
TRIAL_S = 30.0
EMPTY_S = 10.0
"""Seconds in which the control groups of dead processes must be empty."""

LAUNCH = f"""set -e
group=$1 home=$2
cat <>"$home/told" &
echo $$ >"$group/cgroup.procs"
exec {" ".join(UNSHARE)} sh "$home/init" "$home"
"""

INIT = """set -e
home=$1
at=/mnt
mount -t tmpfs -o mode=755 below /mnt
mkdir /mnt/layers /mnt/new /mnt/seed
mount --bind "$home/seed" /mnt/seed
mount -t tmpfs -o mode=755 root /mnt/new
"""

NAMES = """
mount -t proc proc $at/new/proc
mount --bind $at/new/proc/sys $at/new/proc/sys
mount -o remount,bind,ro $at/new/proc/sys
[ ! -e /proc/sysrq-trigger ] || mount --bind /dev/null $at/new/proc/sysrq-trigger
mount -t sysfs -o ro sysfs $at/new/sys
mount -t cgroup2 cgroup2 $at/new/sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid dev $at/new/dev
mkdir $at/new/dev/shm $at/new/dev/pts $at/new/dev/net
mount -t tmpfs -o mode=1777 shm $at/new/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts $at/new/dev/pts
ln -s pts/ptmx $at/new/dev/ptmx
ln -s /proc/self/fd $at/new/dev/fd
mknod $at/new/dev/net/tun c 10 200
touch $at/new/told
mount --bind "$home/told" $at/new/told
hostname machine
"""


class Container(Ending):
    """A running one. A context manager: at its end it is dead, and nothing of it is left.

    It runs `steps`, or all, and ends. `later`: another systemd, unpacked there. `ClientMissing` if
    this machine cannot have it.
    """

    def __init__(self, limit_s: int, steps: str = "", later: Path | None = None) -> None:
        self.later = later
        _check()
        self._group = _control_group()
        self._directory = tempfile.TemporaryDirectory(prefix="vuproc-systemd-")
        try:
            home = Path(self._directory.name)
            os.mkfifo(home / "told")
            _write(home, limit_s, steps, later)
            self.process = GuestProcess(["sh", "-c", LAUNCH, "sh", self._group, home])
        except BaseException:
            self._remove()
            raise

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        try:
            self.process.kill()
        finally:
            self._remove()

    def _remove(self) -> None:
        self._directory.cleanup()
        _remove_group(self._group)


def _write(home: Path, limit_s: int, steps: str, later: Path | None) -> None:
    for name, text in root.seed(limit_s, steps).items():
        path = home / f"seed{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    nodes = "".join(f"mknod -m 666 $at/new/dev/{name} c {at}\n" for name, at in NODES.items())
    without = ",".join(f"-{name}" for name in WITHOUT)
    end = f"""
cd $at/new
mkdir old
pivot_root . old
exec chroot . /usr/bin/env -i container=vuproc PATH=/usr/bin:/usr/sbin \\
    setpriv --bounding-set={without} {root.SYSTEMD}
"""
    (home / "init").write_text(INIT + root.script(later) + NAMES + nodes + end)


def _check() -> None:
    """Raises `ClientMissing` with what this machine lacks."""
    if os.getuid() != 0:
        raise ClientMissing("systemd", "namespaces of the machine's take root")
    for program in ("unshare", "setpriv"):
        if shutil.which(program) is None:
            raise ClientMissing("systemd", f"there is no {program} (apt-get install util-linux)")
    if not root.SYSTEMD.exists():
        raise ClientMissing("systemd", f"there is no {root.SYSTEMD} (apt-get install systemd)")
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        raise ClientMissing("systemd", "this kernel has no overlayfs, or has not loaded it")
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=TRIAL_S)
    if tried.returncode != 0:
        raise ClientMissing("systemd", f"no namespaces can be had: {tried.stderr.strip()}")


def _control_group() -> Path:
    """One of our own in the v2 hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, kind = line.split()[4], line.partition(" - ")[2].split()[0]
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="vuproc-systemd-", dir=place))
    raise ClientMissing("systemd", "there is no cgroup v2 hierarchy that can be written to")


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + EMPTY_S
    for folder, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                os.rmdir(folder)
                break
            except OSError:
                # A process that is dead leaves its group a moment later.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
