"""Lists the clients that play the guest: where each is on this machine, or why it is not."""

from __future__ import annotations

from collections.abc import Callable

from vuproc.testing.vms import clients
from vuproc.testing.vms.clients import Qemu
from vuproc.testing.vms.errors import ClientMissing


def qemu(which: Qemu) -> str:
    """Where this QEMU is, and its version."""
    program = clients.qemu(which)
    return f"{program} ({'.'.join(map(str, clients.qemu_version(program)))})"


def uml_with_drivers() -> str:
    """Where it is, and its version."""
    image = clients.uml_with_drivers().image
    return f"{image} ({clients.uml_release(image)})"


CLIENTS: dict[str, Callable[[], object]] = {
    "User-Mode Linux": lambda: clients.user_mode_linux().image,
    "UML with drivers": uml_with_drivers,
    "QEMU": lambda: qemu(Qemu.INSTALLED),
    "QEMU of trixie": lambda: qemu(Qemu.TRIXIE),
    "QEMU of sid": lambda: qemu(Qemu.SID),
    "kernel for QEMU": lambda: clients.qemu_kernel().image,
    "later kernel": lambda: clients.qemu_kernel("trixie").image,
    "libblkio": clients.libblkio,
    "DPDK": lambda: clients.dpdk().program,
    "Ceph": lambda: clients.ceph().programs,
    "busybox": clients.busybox,
    "mke2fs": clients.mke2fs,
}


def main() -> None:
    """Prints one line a client. What is missing is no error: tests and demo go on without it."""
    for name, find in CLIENTS.items():
        try:
            print(f"  {name:<16} {find()}")
        except ClientMissing as error:
            print(f"  {name:<16} missing: {error.reason}")


if __name__ == "__main__":
    main()
