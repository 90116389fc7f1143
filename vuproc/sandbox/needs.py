"""What a device says that its workers need, once they serve, of the machine that they are on."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""The kernel's names without CAP_; a capability's number is its place (linux/capability.h)."""


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What workers reach beside what they have open. ValueError for a capability that is none.

    Paths are absolute, or relative to the device file. A folder stands for all that is in it.
    """

    files: tuple[str, ...] = ()
    """Files and folders to read, write, make and remove."""
    readable: tuple[str, ...] = ()
    """Files and folders to read."""
    devices: tuple[str, ...] = ()
    """Device nodes to open and to give commands to (ioctl)."""
    network: bool | Literal["unix"] = False
    """Make sockets: all kinds, or those of this machine (AF_UNIX)."""
    io_uring: bool = False
    """Have requests served by io_uring; a class that overrides `Device.uring_files` has said so."""
    capabilities: tuple[str, ...] = ()
    """Of root's powers those to keep, if the process has them: ("CHOWN",)."""

    def __post_init__(self) -> None:
        for name in self.capabilities:
            if name not in CAPABILITIES:
                raise ValueError(f"{name!r} is no capability; write CHOWN for CAP_CHOWN")

    def with_more(self, other: Needs) -> Needs:
        """Both."""
        return Needs(
            files=_both(self.files, other.files),
            readable=_both(self.readable, other.readable),
            devices=_both(self.devices, other.devices),
            network=max(self.network, other.network, key=(False, "unix", True).index),
            io_uring=self.io_uring or other.io_uring,
            capabilities=_both(self.capabilities, other.capabilities),
        )


def _both(ours: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*ours, *others]))


NOTHING = Needs()


def existing(*paths: str) -> tuple[str, ...]:
    """Those of the paths that are there: for what a machine may have or not."""
    return tuple(path for path in paths if os.path.exists(path))
