"""User-Mode Linux: a whole kernel as a process, with vhost-user devices; no KVM, no root."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vuproc.testing.vms import clients
from vuproc.testing.vms.clients import Kernel
from vuproc.testing.vms.linux import LinuxGuest

# The guest's memory is an unlinked file in TMPDIR: on a disk it would cost a write-back.
MEMORY_FILES = Path("/dev/shm")


def boot_uml(
    devices: Mapping[Path, int],
    *,
    script: str,
    modules: Sequence[str] = ("virtio_blk",),
    programs: Sequence[Path] = (),
    memory_mib: int = 128,
    kernel: Kernel | None = None,
    parameters: Sequence[str] = (),
) -> LinuxGuest:
    """Boots it on vhost-user devices (socket path -> virtio device id) and runs `script` there.

    It has one CPU, so it uses one queue of each device. `kernel`: not the distribution's.
    `parameters`: more of the kernel's command line. `ClientMissing` if it cannot be had.
    """
    kernel = kernel or clients.user_mode_linux()

    def command(home: Path, initramfs: Path) -> list[str | Path]:
        return [
            kernel.image,
            f"mem={memory_mib}M",
            f"initrd={initramfs}",
            f"uml_dir={home}/",
            *(f"virtio_uml.device={path.absolute()}:{number}" for path, number in devices.items()),
            # The first console is our pipe, and there are no others: none may ask for a terminal.
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            "quiet",
            "loglevel=3",
            "panic=-1",
            *parameters,
        ]

    environment = dict(os.environ)
    environment["LD_PRELOAD"] = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), _wide()]))
    if MEMORY_FILES.is_dir():
        environment["TMPDIR"] = str(MEMORY_FILES)
    return LinuxGuest(
        kernel, command, script=script, modules=modules, programs=programs, env=environment
    )


def _wide() -> str | None:
    """What has it run on CPUs whose registers need more room than it has: uml_registers.c."""
    found = importlib.util.find_spec("vuproc.testing.vms.uml_registers")
    return None if found is None else found.origin
