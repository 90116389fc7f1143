"""How to attach a device to each client: its exact flags or XML, shared memory included."""

from __future__ import annotations

import re
from collections.abc import Callable

from vuproc.cli.hint_libvirt import libvirt
from vuproc.cli.hint_programs import dpdk, kata, libblkio, uml
from vuproc.cli.hint_qemu import qemu, qemu_microvm
from vuproc.cli.hint_rust import cloud_hypervisor, crosvm, libkrun, openvmm
from vuproc.cli.hint_target import FS, HintError, Target
from vuproc.device_file.check import DeviceFile
from vuproc.spec.fuse import TAG_BYTES

__all__ = ["CLIENTS", "HintError", "hint"]

CLIENTS: dict[str, Callable[[Target], str]] = {
    "qemu": qemu,
    "qemu-microvm": qemu_microvm,
    "cloud-hypervisor": cloud_hypervisor,
    "crosvm": crosvm,
    "openvmm": openvmm,
    "libkrun": libkrun,
    "libvirt": libvirt,
    "kata": kata,
    "uml": uml,
    "libblkio": libblkio,
    "dpdk": dpdk,
}


def hint(client: str, file: DeviceFile, memory: str = "1G") -> str:
    """The text for `client`, a key of CLIENTS. Raises HintError if it cannot have the device."""
    device = file.make_device()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", file.path.stem).strip("-")
    name = f"vuproc-{stem}" if stem else "vuproc"
    config = device.config_space()
    tag = (
        config[:TAG_BYTES].rstrip(b"\0").decode(errors="replace") if device.device_id == FS else ""
    )
    target = Target(
        device_id=device.device_id,
        queues=device.num_queues(),
        queue_size=device.queue_size(),
        config_size=len(config),
        socket=file.socket.path,
        listens=file.socket.mode == "server",
        memory=memory,
        name=name,
        tag=tag or name,
        permissions=file.socket.permissions,
        owner=_named("user", file.socket.owner) or "the user who runs vuproc",
        group=_named("group", file.socket.group) or "that user's group",
        packed=file.keys.packed,
    )
    return CLIENTS[client](target)


def _named(kind: str, name: str | int | None) -> str | None:
    return None if name is None else f"{kind} {name}"
