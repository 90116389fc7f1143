"""How to attach a device to each client: its exact flags or XML, shared memory included."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from vuproc.cli.client_names import CROSVM_TYPES, NAMES, QEMU_DEVICES
from vuproc.device_file.check import DeviceFile
from vuproc.errors import VuprocError
from vuproc.spec.fuse import TAG_BYTES

NET, BLK, SCSI, FS = 1, 2, 8, 26
QEMU_MAX_QUEUE_SIZE = 1024
"""Entries of the largest queue that QEMU has."""
QEMU_MIN_NET_QUEUE_SIZE = 256
"""Entries of the smallest queue of its network device."""
QEMU_ANY = "vhost-user-test-device"
"""QEMU's device of any type."""
DPDK_MAX_QUEUE_SIZE = 1024
"""Entries that its test program is asked for at most, so that its buffers last."""
CLOUD_HYPERVISOR_ANY = "--generic-vhost-user"
"""Cloud Hypervisor's flag for a device of any type."""
EVERYBODY = 0o002
"""The permission to connect that a socket gives to everybody."""
GROUP = 0o020
"""The one that it gives to its group."""


class HintError(VuprocError):
    """This client cannot have this device; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the hints are made of."""

    device_id: int
    queues: int
    queue_size: int
    config_size: int
    """Bytes of the device's configuration space."""
    socket: str
    listens: bool
    """vuproc listens (mode: server) and the client connects; otherwise the other way round."""
    memory: str
    """Size of guest memory as the clients write it: 1G."""
    name: str
    """A word for the identifiers of the client."""
    tag: str
    """What a guest mounts a file system by."""
    permissions: int
    """Of the socket."""
    owner: str
    """The user that the socket is given to, in words."""
    group: str
    """The same for the group."""

    @property
    def kind(self) -> str:
        """The device type in words."""
        return NAMES.get(self.device_id, f"virtio device {self.device_id}")


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
    )
    return CLIENTS[client](target)


# QEMU.


def _qemu(target: Target) -> str:
    notes = [*_qemu_notes(target), *_largest_queues(target, "With QEMU 10.0.13 (Debian 13)")]
    return _qemu_command(
        target,
        [
            f"qemu-system-x86_64 -m {target.memory} \\",
            f"  -object memory-backend-memfd,id=mem,size={target.memory},share=on \\",
            "  -numa node,memdev=mem \\",
        ],
        _qemu_flags(target),
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


def _qemu_microvm(target: Target) -> str:
    notes = [*_qemu_notes(target), *_largest_queues(target, "On microvm")]
    return _qemu_command(
        target,
        [
            f"qemu-system-x86_64 -M microvm,memory-backend=mem -m {target.memory} \\",
            f"  -object memory-backend-memfd,id=mem,size={target.memory},share=on \\",
            "  -global virtio-mmio.force-legacy=false \\",
        ],
        _qemu_flags(target, pci=False),
        notes,
    )


def _qemu_command(
    target: Target, machine: list[str], flags: list[tuple[str, str]], notes: list[str]
) -> str:
    lines = [
        _order(target, "QEMU"),
        *_access(target, "QEMU"),
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
    return "\n".join([*lines, *notes, _larger_queues(target)])


def _qemu_flags(target: Target, *, pci: bool = True) -> list[tuple[str, str]]:
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
                f"mq={_on(pairs > 1)},rx_queue_size={rings},tx_queue_size={rings}",
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


def _qemu_notes(target: Target) -> list[str]:
    if target.device_id == NET:
        return []
    device = QEMU_DEVICES.get(target.device_id)
    if device is None:
        return [
            f"# QEMU has no device of its own for {target.kind}; "
            f"{QEMU_ANY}, for any type, is there from QEMU 11.1 on."
        ]
    return [f"# Needs QEMU {device.since} or later."] if device.since else []


# libvirt.


def _libvirt(target: Target) -> str:
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
    notes = [_order(target, "the domain"), *_access(target, "QEMU", "libvirt-qemu")]
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
    arguments = [word for pair in _qemu_flags(target) for word in pair]
    return "\n".join(
        [
            f"<!-- libvirt has no element for a vhost-user {escape(target.kind)}, "
            "so QEMU gets its flags as they are. -->",
            *(f"<!-- {note[2:]} -->" for note in _qemu_notes(target)),
            *_libvirt_comments(target),
            "<!-- <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->",
            *backing,
            "<qemu:commandline>",
            *(f"  <qemu:arg value={quoteattr(word)}/>" for word in arguments),
            "</qemu:commandline>",
        ]
    )


# Cloud Hypervisor.


def _cloud_hypervisor(target: Target) -> str:
    socket = _key_value("Cloud Hypervisor", target.socket)
    queues = f"num_queues={target.queues},queue_size={target.queue_size}"
    sizes = ",".join([str(target.queue_size)] * target.queues)
    generic = f"socket={socket},virtio_id={target.device_id},queue_sizes=[{sizes}]"
    notes = [f"# Or, as for a device of any type: {CLOUD_HYPERVISOR_ANY} {shlex.quote(generic)}"]
    if target.device_id == NET:
        mode = "client" if target.listens else "server"
        pairs = max(1, target.queues // 2)
        # It keeps the control queue for itself, and counts those of the pairs.
        queues = f"num_queues={2 * pairs},queue_size={target.queue_size}"
        flag, value = "--net", f"vhost_user=true,socket={socket},{queues},vhost_mode={mode}"
    else:
        _must_listen(target, "Cloud Hypervisor")
        match target.device_id:
            case 2:
                flag, value = "--disk", f"vhost_user=true,socket={socket},{queues}"
            case 26:
                requests = max(1, target.queues - 1)
                flag = "--fs"
                value = (
                    f"tag={_key_value('Cloud Hypervisor', target.tag)},socket={socket},"
                    f"num_queues={requests},queue_size={target.queue_size}"
                )
            case 16:
                raise HintError("Cloud Hypervisor cannot have a vhost-user gpu")
            case _:
                flag, value = CLOUD_HYPERVISOR_ANY, generic
                notes = [f"# Before it had that, it could have no vhost-user {target.kind}."]
    if not target.listens:
        notes = []  # it only connects
    else:
        notes.append(
            f"# {CLOUD_HYPERVISOR_ANY} is there from version 52 on; later ones say device_type for "
            "virtio_id,\n# and take both."
        )
    return "\n".join(
        [
            _order(target, "Cloud Hypervisor"),
            *_access(target, "Cloud Hypervisor"),
            "cloud-hypervisor \\",
            f"  --memory size={target.memory},shared=on \\",
            f"  {flag} {shlex.quote(value)}",
            *notes,
        ]
    )


# crosvm.


def _crosvm(target: Target) -> str:
    _must_listen(target, "crosvm")
    name = CROSVM_TYPES.get(target.device_id)
    if name is None:
        known = ", ".join(CROSVM_TYPES.values())
        raise HintError(f"crosvm has no vhost-user {target.kind}; it has {known}")
    value = f"{name},socket={_key_value('crosvm', target.socket)}"
    return "\n".join(
        [
            _order(target, "crosvm"),
            *_access(target, "crosvm"),
            "# crosvm's guest memory is always shared; no flag is needed for it.",
            "crosvm run \\",
            f"  --vhost-user {shlex.quote(f'{value},max-queue-size={target.queue_size}')}",
        ]
    )


# User-Mode Linux.


def _uml(target: Target) -> str:
    _must_listen(target, "User-Mode Linux")
    if ":" in target.socket or re.search(r"\s", target.socket):
        raise HintError(
            "User-Mode Linux takes no socket path with a colon or a space in it, "
            f"and there is one in {target.socket}"
        )
    lines = [
        _order(target, "User-Mode Linux"),
        *_access(target, "User-Mode Linux"),
        "# Guest memory is a file under TMPDIR that UML shares by itself; keep it on a tmpfs.",
        "# On a CPU with AMX it must be Linux 6.13 or later: older ones panic as they start.",
        f"TMPDIR=/dev/shm linux.uml mem={target.memory} \\",
        f"  virtio_uml.device={shlex.quote(f'{target.socket}:{target.device_id}')}",
        f"# The guest needs the virtio driver for the {target.kind}, as a module or built in.",
    ]
    if target.device_id == NET and target.queues > 3:
        lines.append("# It has one CPU, so its driver uses one pair of queues.")
    elif target.device_id == BLK and target.queues > 1:
        lines.append(f"# It has one CPU, so drivers use one queue of the {target.queues}.")
    elif target.device_id in (SCSI, FS):
        lines.append("# It has one CPU, so drivers use one request queue.")
    if target.device_id == FS:
        lines.append(f"# In the guest: mount -t virtiofs {shlex.quote(target.tag)} /mnt")
    return "\n".join(lines)


# libblkio.


def _libblkio(target: Target) -> str:
    if target.device_id != BLK:
        raise HintError(f"libblkio drives block devices only, not {target.kind}")
    _must_listen(target, "libblkio")
    path, queues = target.socket, target.queues
    image = f"driver=virtio-blk-vhost-user,path={path.replace(',', ',,')},cache.direct=on"
    return "\n".join(
        [
            _order(target, "libblkio"),
            *_access(target, "libblkio"),
            "# The library (C); libblkio allocates and shares the memory itself:",
            'blkio_create("virtio-blk-vhost-user", &b);',
            f'blkio_set_str(b, "path", {_c_string(path)});',
            "blkio_connect(b);",
            f'blkio_set_int(b, "num-queues", {queues});',
            "blkio_start(b);",
            "# QEMU's tools (block-blkio module):",
            f"qemu-io --image-opts {shlex.quote(image)} -c 'read 0 4k'",
            f"qemu-img convert --image-opts -O raw {shlex.quote(image)} copy.raw",
            "# nbdkit:",
            f"nbdkit blkio virtio-blk-vhost-user {shlex.quote(f'path={path}')} num-queues={queues}",
            "# fio:",
            "fio --name=disk --ioengine=libblkio --libblkio_driver=virtio-blk-vhost-user "
            f"{shlex.quote(f'--libblkio_path={path}')} --rw=randread --bs=4k --thread",
        ]
    )


# DPDK.


def _dpdk(target: Target) -> str:
    if target.device_id != NET:
        raise HintError(f"DPDK's virtio-user drives network devices only, not {target.kind}")
    _must_listen(target, "DPDK")
    path = _key_value("DPDK", target.socket)
    if path != target.socket:
        raise HintError(
            "DPDK takes no socket path with one of ,=[] or a space in it, "
            f"and there is one in {target.socket}"
        )
    pairs, size = max(1, target.queues // 2), min(target.queue_size, DPDK_MAX_QUEUE_SIZE)
    device = f"net_virtio_user0,path={path},queues={pairs},queue_size={size}"
    return "\n".join(
        [
            _order(target, "DPDK"),
            *_access(target, "DPDK"),
            "# Without huge pages, for a try; append ,packed_vq=1 to --vdev for packed rings.",
            "dpdk-testpmd --no-huge -m 512 --no-shconf --no-pci --no-telemetry \\",
            f"  {shlex.quote(f'--vdev={device}')} \\",
            f"  -- -i --rxq={pairs} --txq={pairs} --rxd={size} --txd={size}",
        ]
    )


CLIENTS: dict[str, Callable[[Target], str]] = {
    "qemu": _qemu,
    "qemu-microvm": _qemu_microvm,
    "cloud-hypervisor": _cloud_hypervisor,
    "crosvm": _crosvm,
    "libvirt": _libvirt,
    "uml": _uml,
    "libblkio": _libblkio,
    "dpdk": _dpdk,
}


# What they share.


def _order(target: Target, client: str) -> str:
    if target.listens:
        return f"# vuproc listens: start it before {client}."
    return f"# {client} listens: start it and vuproc in any order."


def _access(target: Target, client: str, user: str = "USER") -> list[str]:
    """Who may connect to our socket, and what to write if the client is `user`, somebody else."""
    if not target.listens:
        return []
    permissions = f"(permissions {target.permissions:04o})"
    if target.permissions & EVERYBODY:
        return [f"# Everybody who can reach the socket's folder may connect {permissions}."]
    who = f"{target.owner} and {target.group}" if target.permissions & GROUP else target.owner
    return [
        f"# Only {who} may connect {permissions}. If {client} runs as another",
        f"# user, the device file needs socket: {{path: PATH, owner: {user}}}, or group: GROUP",
        "# with permissions: 0660, and that user must be able to reach the socket's folder.",
    ]


def _named(kind: str, name: str | int | None) -> str | None:
    return None if name is None else f"{kind} {name}"


def _must_listen(target: Target, client: str) -> None:
    if not target.listens:
        raise HintError(
            f"{client} connects to a listening device: set mode: server in the device file"
        )


def _larger_queues(target: Target) -> str:
    return (
        f"# Queues of more than {target.queue_size} entries are refused, and the guest then hangs "
        "in its probe: raise queue_size in the device file for them."
    )


def _key_value(client: str, path: str) -> str:
    """A path as the value in key=value,key=value; quoted if it holds what separates them."""
    if '"' in path:
        raise HintError(f'{client} takes no socket path with a " in it, and there is one in {path}')
    return f'"{path}"' if re.search(r"[,=\[\]\s]", path) else path


def _c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _on(value: bool) -> str:
    return "on" if value else "off"
