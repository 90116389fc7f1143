"""How QEMU attaches a device: its flags."""

from __future__ import annotations

import shlex

from vuproc.cli.client_names import QEMU_DEVICES
from vuproc.cli.hint_target import BLK, FS, NET, SCSI, Target, access, larger_queues, on, order

QEMU_MAX_QUEUE_SIZE = 1024
"""Entries of the largest queue that QEMU has."""
QEMU_MIN_NET_QUEUE_SIZE = 256
"""Entries of the smallest queue of its network device."""
QEMU_ANY = "vhost-user-test-device"
"""QEMU's device of any type."""


# QEMU 7.2 to 11.1: hw/virtio/vhost-user-*-pci.c and hw/block/vhost-user-blk.c (properties),
# qapi/char.json (reconnect-ms since 9.2; reconnect is refused by 11.1), and
# include/hw/virtio/virtio.h (packed).


def qemu(target: Target) -> str:
    """The flags of a machine with PCI."""
    notes = [*qemu_notes(target), *_largest_queues(target, "With QEMU 10.0.13 (Debian 13)")]
    return _qemu_command(
        target,
        [
            f"qemu-system-x86_64 -m {target.memory} \\",
            f"  -object memory-backend-memfd,id=mem,size={target.memory},share=on \\",
            "  -numa node,memdev=mem \\",
        ],
        qemu_flags(target),
        notes,
    )


def _largest_queues(target: Target, where: str) -> list[str]:
    """Where drivers are told that they may have QEMU's largest queue, they take it."""
    if target.queue_size >= QEMU_MAX_QUEUE_SIZE:
        return []
    return [
        f"# {where} drivers choose queues of {QEMU_MAX_QUEUE_SIZE} entries, whatever "
        f"queue-size says:\n# the device file needs queue_size: {QEMU_MAX_QUEUE_SIZE}."
    ]


def qemu_microvm(target: Target) -> str:
    """Those of a machine without."""
    notes = [*qemu_notes(target), *_largest_queues(target, "On microvm")]
    return _qemu_command(
        target,
        [
            f"qemu-system-x86_64 -M microvm,memory-backend=mem -m {target.memory} \\",
            f"  -object memory-backend-memfd,id=mem,size={target.memory},share=on \\",
            "  -global virtio-mmio.force-legacy=false \\",
        ],
        qemu_flags(target, pci=False),
        notes,
    )


def _qemu_command(
    target: Target, machine: list[str], flags: list[tuple[str, str]], notes: list[str]
) -> str:
    lines = [
        order(target, "QEMU"),
        *access(target, "QEMU"),
        "# The memory and -m lines are needed once, however many devices there are.",
        *machine,
        *(f"  {flag} {shlex.quote(value)} \\" for flag, value in flags),
    ]
    lines[-1] = lines[-1].removesuffix(" \\")
    if target.listens:
        lines.append(
            "# To survive a restart of vuproc, append ,reconnect-ms=1000 to -chardev. (Before QEMU "
            "9.2: ,reconnect=1,\n# which QEMU 11 has no more.)"
        )
    if target.packed and target.device_id in (BLK, NET):
        lines.append("# For packed rings, append ,packed=on to -device.")
    if target.device_id in (BLK, SCSI):
        lines.append(
            "# It has no iothread and no iothread-vq-mapping: they serve QEMU's own disks, and\n"
            "# vuproc's workers serve the queues of this one."
        )
    return "\n".join([*lines, *notes, larger_queues(target)])


def qemu_flags(target: Target, *, pci: bool = True) -> list[tuple[str, str]]:
    """The flags of the device alone."""
    server = "" if target.listens else ",server=on"
    path = target.socket.replace(",", ",,")
    return [
        ("-chardev", f"socket,id={target.name},path={path}{server}"),
        *_qemu_device(target, pci),
    ]


def _qemu_device(target: Target, pci: bool) -> list[tuple[str, str]]:
    size = min(target.queue_size, QEMU_MAX_QUEUE_SIZE)
    chardev = f"chardev={target.name}"
    if target.device_id == NET:
        pairs = max(1, target.queues // 2)
        rings = max(size, QEMU_MIN_NET_QUEUE_SIZE)
        return [
            ("-netdev", f"vhost-user,id={target.name}-net,{chardev},queues={pairs}"),
            (
                "-device",
                f"virtio-net-{'pci' if pci else 'device'},netdev={target.name}-net,"
                f"mq={on(pairs > 1)},rx_queue_size={rings},tx_queue_size={rings}",
            ),
        ]
    extra = {
        BLK: f",num-queues={target.queues},queue-size={size}",
        SCSI: f",num_queues={max(1, target.queues - 2)},virtqueue_size={size}",
        FS: f",num-request-queues={max(1, target.queues - 1)},"
        f"tag={target.tag.replace(',', ',,')},queue-size={size}",
    }.get(target.device_id, "")
    device = QEMU_DEVICES.get(target.device_id)
    if device is None:
        return [
            (
                "-device",
                f"{QEMU_ANY}{'-pci' * pci},{chardev},virtio-id={target.device_id},"
                f"num_vqs={target.queues},vq_size={size},config_size={target.config_size}",
            )
        ]
    return [("-device", f"{device.name if pci else device.plain},{chardev}{extra}")]


def qemu_notes(target: Target) -> list[str]:
    """Which version it takes."""
    if target.device_id == NET:
        return []
    device = QEMU_DEVICES.get(target.device_id)
    if device is None:
        return [
            f"# QEMU has no device of its own for {target.a_kind}; "
            f"{QEMU_ANY}, for any type, is there from QEMU 11.1 on."
        ]
    return [f"# Needs QEMU {device.since} or later."] if device.since else []
