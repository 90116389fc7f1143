"""How libvirt attaches a device: its XML."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from vuproc.cli.hint_qemu import (
    QEMU_MAX_QUEUE_SIZE,
    QEMU_MIN_NET_QUEUE_SIZE,
    qemu_flags,
    qemu_notes,
)
from vuproc.cli.hint_target import BLK, EVERYBODY, HintError, Target, access, order


def libvirt(target: Target) -> str:
    """Its XML, of libvirt 7.8 to 12.8: docs/formatdomain.rst; the schema that comes with it checks
    it (tests/field/test_c5_hints.py).
    """
    backing = [
        "<memoryBacking>",
        "  <source type='memfd'/>",
        "  <access mode='shared'/>",
        "</memoryBacking>",
    ]
    path = quoteattr(target.socket)
    match target.device_id:
        case 2:
            if not target.listens:
                raise HintError(
                    "libvirt's vhostuser disks connect to a listening device: "
                    "set mode: server in the device file"
                )
            element = [
                "<disk type='vhostuser' device='disk'>",
                f"  <driver name='qemu' type='raw' queues='{target.queues}' "
                f"queue_size='{min(target.queue_size, QEMU_MAX_QUEUE_SIZE)}'/>",
                f"  <source type='unix' path={path}>",
                "    <reconnect enabled='yes' timeout='1'/>",
                "  </source>",
                "  <target dev='vda' bus='virtio'/>",
                "</disk>",
            ]
        case 1:
            rings = min(max(target.queue_size, QEMU_MIN_NET_QUEUE_SIZE), QEMU_MAX_QUEUE_SIZE)
            element = [
                "<interface type='vhostuser'>",
                *_libvirt_net_source(target, path),
                "  <model type='virtio'/>",
                f"  <driver queues='{max(1, target.queues // 2)}' "
                f"rx_queue_size='{rings}' tx_queue_size='{rings}'/>",
                "</interface>",
            ]
        case 26 if target.listens:
            size = min(target.queue_size, QEMU_MAX_QUEUE_SIZE)
            element = [
                "<filesystem type='mount'>",
                f"  <driver type='virtiofs' queue='{size}'/>",
                f"  <source socket={path}/>",
                f"  <target dir={quoteattr(target.tag)}/>",
                "</filesystem>",
            ]
        case _:
            return _libvirt_passthrough(target, backing)
    return "\n".join(
        [
            *_libvirt_comments(target),
            "<!-- in <domain>: -->",
            *backing,
            "<!-- in <devices>: -->",
            *element,
        ]
    )


def _libvirt_net_source(target: Target, path: str) -> list[str]:
    if not target.listens:
        return [f"  <source type='unix' path={path} mode='server'/>"]
    return [
        f"  <source type='unix' path={path} mode='client'>",
        "    <reconnect enabled='yes' timeout='1'/>",
        "  </source>",
    ]


def _libvirt_comments(target: Target) -> list[str]:
    notes = [order(target, "the domain"), *access(target, "QEMU", "libvirt-qemu")]
    if target.listens and not target.permissions & EVERYBODY:
        notes += [
            "# libvirt runs QEMU as libvirt-qemu (Debian, Ubuntu) or qemu (Fedora, RHEL), unless",
            "# qemu.conf or qemu:///session says otherwise. One that may not connect does not",
            "# start, or tries again for ever.",
        ]
    if target.device_id == BLK:
        notes.append("# queue_size is for libvirt 7.8 and later.")
    return [f"<!-- {escape(note[2:])} -->" for note in notes]


def _libvirt_passthrough(target: Target, backing: list[str]) -> str:
    arguments = [word for pair in qemu_flags(target) for word in pair]
    return "\n".join(
        [
            f"<!-- libvirt has no element for a vhost-user {escape(target.kind)}, "
            "so QEMU gets its flags as they are. -->",
            *(f"<!-- {note[2:]} -->" for note in qemu_notes(target)),
            *_libvirt_comments(target),
            "<!-- <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->",
            *backing,
            "<qemu:commandline>",
            *(f"  <qemu:arg value={quoteattr(word)}/>" for word in arguments),
            "</qemu:commandline>",
        ]
    )
