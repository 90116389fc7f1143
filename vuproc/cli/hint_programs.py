"""How clients that are no VMMs, or a whole kernel in a process, attach a device; and Kata."""

from __future__ import annotations

import os
import re
import shlex

from vuproc.cli.hint_target import (
    BLK,
    FS,
    NET,
    SCSI,
    HintError,
    Target,
    access,
    c_string,
    key_value,
    must_listen,
    order,
)

KATA_STORE = "/var/run/kata-containers/vhost-user"
"""Where Kata looks for devices by default."""
KATA_MAJOR = 241
"""The major number that stands for a vhost-user disk."""
DPDK_MAX_QUEUE_SIZE = 1024
"""Entries that its test program is asked for at most, so that its buffers last."""


# User-Mode Linux: arch/um/drivers/virtio_uml.c of Linux, virtio_uml.device.


def uml(target: Target) -> str:
    """Its command line."""
    must_listen(target, "User-Mode Linux")
    if ":" in target.socket or re.search(r"\s", target.socket):
        raise HintError(
            "User-Mode Linux takes no socket path with a colon or a space in it, "
            f"and there is one in {target.socket}"
        )
    lines = [
        order(target, "User-Mode Linux"),
        *access(target, "User-Mode Linux"),
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


# libblkio 1.5: docs/blkio.rst (virtio-blk-vhost-user); QEMU 7.2's block/blkio.c;
# nbdkit-blkio-plugin(1); fio's engines/libblkio.c.


def libblkio(target: Target) -> str:
    """The calls of its interface in C, and programs that use it."""
    if target.device_id != BLK:
        raise HintError(f"libblkio drives block devices only, and this is {target.a_kind}")
    must_listen(target, "libblkio")
    path, queues = target.socket, target.queues
    image = f"driver=virtio-blk-vhost-user,path={path.replace(',', ',,')},cache.direct=on"
    return "\n".join(
        [
            order(target, "libblkio"),
            *access(target, "libblkio"),
            "# The library (C); libblkio allocates and shares the memory itself:",
            'blkio_create("virtio-blk-vhost-user", &b);',
            f'blkio_set_str(b, "path", {c_string(path)});',
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


# DPDK 22.11: doc/guides/nics/virtio.rst and doc/guides/testpmd_app_ug.


def dpdk(target: Target) -> str:
    """The flags of its test program."""
    if target.device_id != NET:
        raise HintError(
            f"DPDK's virtio-user drives network devices only, and this is {target.a_kind}"
        )
    must_listen(target, "DPDK")
    path = key_value("DPDK", target.socket)
    if path != target.socket:
        raise HintError(
            "DPDK takes no socket path with one of ,=[] or a space in it, "
            f"and there is one in {target.socket}"
        )
    pairs, size = max(1, target.queues // 2), min(target.queue_size, DPDK_MAX_QUEUE_SIZE)
    device = f"net_virtio_user0,path={path},queues={pairs},queue_size={size}"
    return "\n".join(
        [
            order(target, "DPDK"),
            *access(target, "DPDK"),
            "# Without huge pages, for a try; append ,packed_vq=1 to --vdev for packed rings.",
            "dpdk-testpmd --no-huge -m 512 --no-shconf --no-pci --no-telemetry \\",
            f"  {shlex.quote(f'--vdev={device}')} \\",
            f"  -- -i --rxq={pairs} --txq={pairs} --rxd={size} --txd={size}",
        ]
    )


# Kata Containers 3: docs/use-cases/using-SPDK-vhostuser-and-kata.md, and the comments of
# vhost_user_store_path in configuration-qemu.toml.


def kata(target: Target) -> str:
    """Its configuration, and the block device's node by which a container asks for the disk."""
    if target.device_id != BLK:
        raise HintError(
            "Kata Containers attaches vhost-user disks that a container asks for, and this is "
            f"{target.a_kind}"
        )
    must_listen(target, "Kata Containers")
    folder, name = os.path.split(target.socket)
    store = folder.removesuffix("/block/sockets")
    lines = []
    if store == folder:
        store = KATA_STORE
        lines = [
            f"# Kata looks for sockets in a place of its own; this one is {target.socket}:",
            f"# the device file needs socket: {store}/block/sockets/{name}",
        ]
    node = shlex.quote(f"{store}/block/devices/{name}")
    return "\n".join(
        [
            order(target, "the container"),
            *access(target, "Kata's QEMU"),
            *lines,
            "# With QEMU as the hypervisor. In [hypervisor.qemu] of configuration.toml:",
            "enable_vhost_user_store = true",
            f'vhost_user_store_path = "{store}"',
            "# The guest's memory is shared where shared_fs is virtio-fs, or by enable_hugepages.",
            "# On the host, once; 0 is free for another disk's, 241 means vhost-user-blk to Kata:",
            f"mknod {node} b {KATA_MAJOR} 0",
            "# In linux.devices of the container's config.json:",
            f'{{"path": "/dev/vda", "type": "b", "major": {KATA_MAJOR}, "minor": 0, '
            '"fileMode": 420, "uid": 0, "gid": 0}',
        ]
    )
