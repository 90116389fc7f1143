"""The root of a machine that systemd runs: this machine's own programs, and vuproc as it would be
installed, with the units of `deploy/systemd`.

    /usr        this machine's, and what is written to it is in memory
    /opt/vuproc vuproc's environment, as pip makes one: Python, packages, and vuproc among them
    /opt/tests  what runs inside
    /told       what is told to who has started the machine
    the rest    in memory

Nothing of this machine is written to: each layer is the lower one of an overlay.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import vuproc

CHECKOUT = Path(__file__).parents[2]
UNITS = CHECKOUT / "deploy" / "systemd"
SYSTEMD = Path("/usr/lib/systemd/systemd")
MODULE = "tests.systemd.inside"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "var", "root", "home", "srv", "mnt", "etc/vuproc")
MERGED = ("bin", "sbin", "lib", "lib64")
"""Links into /usr."""

TESTS = f"""[Unit]
Description=what is tested
After=basic.target

[Service]
Type=exec
WorkingDirectory=/opt
ExecStart=/opt/vuproc/bin/python -m {MODULE} STEPS
ExecStopPost=/opt/vuproc/bin/python -m {MODULE}.ending
RuntimeMaxSec=LIMIT
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""

PATIENCE = """[Service]
WatchdogSec=150
TimeoutStartSec=150
TimeoutStopSec=150
"""
"""For every unit of ours, unless a step says otherwise. A machine that stands still for a while has
used up a minute, with which nobody could do anything.
"""

MASKED = (
    "dbus.service",
    "dbus.socket",
    "e2scrub_reap.service",
    "getty.target",
    "ldconfig.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-pstore.service",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)
"""Of no use here, or not to be let at the machine."""

USERS = """root:x:0:0:root:/root:/bin/sh
vmm:x:990:990:a VMM's user:/:/usr/sbin/nologin
disks:x:991:991:a device's user:/:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

LAYER = """layer() {
    layer=$at/layers$2
    mkdir -p "$layer/lower" "$layer/upper" "$layer/work" "$at/new$2"
    mount --rbind "$1" "$layer/lower"
    mount -t overlay none "$at/new$2" \\
        -o "lowerdir=${3:+$3:}$layer/lower,upperdir=$layer/upper,workdir=$layer/work"
}
"""
"""A shell function: what of this machine is at a path there, below what is at a third."""


def base() -> str:
    """Where the Python is there of which vuproc's environment is made."""
    return sys.base_prefix if sys.base_prefix.startswith("/usr") else "/opt/python"


def layers() -> Mapping[str, str]:
    """What of this machine is seen: its path here, and there."""
    site = f"/opt/vuproc/lib/{VERSION}/site-packages"
    seen = {
        "/usr": "/usr",
        sysconfig.get_path("purelib"): site,
        str(Path(vuproc.__file__).parent): f"{site}/vuproc",
        str(CHECKOUT / "tests"): "/opt/tests",
    }
    if base() != sys.base_prefix:
        seen[sys.base_prefix] = base()
    return seen


def script(later: Path | None) -> str:
    """Shell lines that make the root at $at/new of files at $at/seed; $at/layers is in memory.

    `later`: another systemd and its libraries, in the place of this machine's.
    """
    above = {"/usr": "" if later is None else f"'{later}/usr'"}
    made = "".join(
        f"layer '{here}' '{there}' {above.get(there, '')}\n" for here, there in layers().items()
    )
    folders = " ".join(f"$at/new/{name}" for name in FOLDERS)
    links = "".join(f"ln -s usr/{name} $at/new/{name}\n" for name in MERGED)
    masks = "".join(f"ln -s /dev/null $at/new/etc/systemd/system/{name}\n" for name in MASKED)
    return f"""{LAYER}
{made}
mkdir -p {folders} $at/new/opt/vuproc/bin $at/new/etc/systemd/system/multi-user.target.wants
chmod 1777 $at/new/tmp
cp -R $at/seed/. $at/new/
{links}{masks}
ln -s ../tests.service $at/new/etc/systemd/system/multi-user.target.wants/
ln -s /usr/lib/systemd/system/multi-user.target $at/new/etc/systemd/system/default.target
rm -f $at/new/opt/vuproc/lib/{VERSION}/site-packages/__editable__*
ln -s {base()}/bin/{VERSION} $at/new/opt/vuproc/bin/python
cd $at/new/opt/vuproc
printf 'home = {base()}/bin\\ninclude-system-site-packages = false\\n' >pyvenv.cfg
for library in $at/new/opt/python/lib/libpython*.so.*; do
    [ ! -e "$library" ] || ln -sf "${{library#"$at/new"}}" $at/new/usr/lib/
done
{{
    echo '#!/opt/vuproc/bin/python'
    echo 'import sys; from vuproc.cli.main import main; sys.exit(main())'
}} >$at/new/usr/bin/vuproc
chmod 755 $at/new/usr/bin/vuproc
"""


def seed(limit_s: int, steps: str = "") -> Mapping[str, str]:
    """Files of the root, by path."""
    units = {
        f"/etc/systemd/system/{path.relative_to(UNITS)}": path.read_text()
        for path in UNITS.rglob("*")
        if path.is_file()
    }
    tests = TESTS.replace("LIMIT", str(limit_s)).replace("STEPS", steps)
    return {
        **units,
        **{
            f"/etc/systemd/system/{unit}.d/patience.conf": PATIENCE
            for unit in ("vuproc.service", "vuproc@.service")
        },
        "/etc/systemd/system/tests.service": tests,
        "/etc/passwd": USERS,
        "/etc/group": "root:x:0:\nvmm:x:990:\ndisks:x:991:\nnogroup:x:65534:\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
        "/etc/machine-id": "00112233445566778899aabbccddeeff\n",
        "/etc/hostname": "machine\n",
        "/etc/fstab": "",
        "/etc/systemd/journald.conf": "[Journal]\nStorage=volatile\nRateLimitBurst=0\n",
    }
