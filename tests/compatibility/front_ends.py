"""The front-ends that tests are run with, and which versions of them this machine has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vuproc.testing.vms import clients
from vuproc.testing.vms.clients import Qemu

BUILT_IN = "built-in"
"""The one of `vuproc.testing`, of the same version as the rest."""


def _qemu(which: Qemu) -> str:
    return _short([str(part) for part in clients.qemu_version(clients.qemu(which))])


def _user_mode_linux() -> str:
    modules = clients.user_mode_linux().image.parents[1] / "lib" / "uml" / "modules"
    release = min(path.name for path in modules.iterdir())
    return _short(release.split("."))


def _libblkio() -> str:
    return _short(Path(clients.libblkio()).resolve().name.partition(".so.")[2].split("."))


def _dpdk() -> str:
    """Its ABI is called after the year that follows a release of November: 23.0 is 22.11's."""
    found = clients.dpdk()
    drivers = found.libraries.glob(f"librte_net_virtio.so.{found.abi}.*")
    year, minor = next(iter(drivers)).name.rsplit(".", 2)[1:]
    return f"{int(year) - 1}.11" if minor == "0" else f"ABI {year}.{minor}"


def _short(parts: Sequence[str]) -> str:
    return ".".join(parts[:2])


FRONT_ENDS: Mapping[str, Callable[[], str]] = {
    "QEMU 7.2": lambda: f"QEMU {_qemu(Qemu.INSTALLED)}",
    "QEMU 10.0": lambda: f"QEMU {_qemu(Qemu.TRIXIE)}",
    "User-Mode Linux 6.1": lambda: f"User-Mode Linux {_user_mode_linux()}",
    "libblkio 1.5": lambda: f"libblkio {_libblkio()}",
    "DPDK 22.11": lambda: f"DPDK {_dpdk()}",
}
"""Real ones, each with what finds out which one is here. Raises ClientMissing where none is."""

NAMES = (*FRONT_ENDS, BUILT_IN)
