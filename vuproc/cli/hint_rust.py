"""How the VMMs in Rust attach a device: Cloud Hypervisor, crosvm, OpenVMM, libkrun."""

from __future__ import annotations

import shlex

from vuproc.cli.client_names import CROSVM_TYPES
from vuproc.cli.hint_target import (
    FS,
    NET,
    HintError,
    Target,
    access,
    c_string,
    key_value,
    must_listen,
    order,
)

CLOUD_HYPERVISOR_ANY = "--generic-vhost-user"
"""Cloud Hypervisor's flag for a device of any type."""


# Cloud Hypervisor 52: docs/generic-vhost-user.md and the help of --disk, --net and --fs.


def cloud_hypervisor(target: Target) -> str:
    """Its flags."""
    socket = key_value("Cloud Hypervisor", target.socket)
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
        must_listen(target, "Cloud Hypervisor")
        match target.device_id:
            case 2:
                flag, value = "--disk", f"vhost_user=true,socket={socket},{queues}"
            case 26:
                requests = max(1, target.queues - 1)
                flag = "--fs"
                value = (
                    f"tag={key_value('Cloud Hypervisor', target.tag)},socket={socket},"
                    f"num_queues={requests},queue_size={target.queue_size}"
                )
            case 16:
                # docs/generic-vhost-user.md: no messages that are for one type.
                raise HintError(
                    "Cloud Hypervisor cannot have a vhost-user GPU: it lacks the message by which "
                    "such a device gets its display (GPU_SET_SOCKET)"
                )
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
            order(target, "Cloud Hypervisor"),
            *access(target, "Cloud Hypervisor"),
            "cloud-hypervisor \\",
            f"  --memory size={target.memory},shared=on \\",
            f"  {flag} {shlex.quote(value)}",
            *notes,
        ]
    )


# crosvm: devices/src/virtio/vhost/user/README.md, and `crosvm run --help` of --vhost-user.


def crosvm(target: Target) -> str:
    """Its flags."""
    must_listen(target, "crosvm")
    name = CROSVM_TYPES.get(target.device_id)
    if name is None:
        known = ", ".join(CROSVM_TYPES.values())
        raise HintError(f"crosvm has no vhost-user {target.kind}; it has {known}")
    value = f"{name},socket={key_value('crosvm', target.socket)}"
    return "\n".join(
        [
            order(target, "crosvm"),
            *access(target, "crosvm"),
            "# crosvm's guest memory is always shared; no flag is needed for it.",
            "crosvm run \\",
            f"  --vhost-user {shlex.quote(f'{value},max-queue-size={target.queue_size}')}",
        ]
    )


# OpenVMM, main of 2026: openvmm/openvmm_entry/src/cli_args.rs, --vhost-user.


def openvmm(target: Target) -> str:
    """Its flag."""
    must_listen(target, "OpenVMM")
    for what, text in (("socket path", target.socket), ("tag", target.tag)):
        if "," in text:
            raise HintError(f"OpenVMM takes no {what} with a comma, and there is one in {text}")
    size = target.queue_size
    match target.device_id:
        case 2:
            options = f"type=blk,num_queues={target.queues},queue_size={size}"
        case 26:
            requests = max(1, target.queues - 1)
            options = f"type=fs,tag={target.tag},num_queues={requests},queue_size={size}"
        case 16:
            raise HintError("OpenVMM cannot have a vhost-user GPU: it has no display for one")
        case number:
            sizes = ",".join([str(size)] * target.queues)
            options = f"device_id={number},queue_sizes=[{sizes}]"
    return "\n".join(
        [
            order(target, "OpenVMM"),
            *access(target, "OpenVMM"),
            "# The front-end is there since April 2026, on Linux hosts. The first versions know no",
            "# num_queues, queue_size and queue_sizes: leave them out, and the device file needs",
            "# queue_size: 128 or more for a disk, 1024 for a file system.",
            "openvmm \\",
            f"  --memory {_with_unit(target.memory)} \\",
            f"  --vhost-user {shlex.quote(f'{target.socket},{options}')}",
        ]
    )


# libkrun, main of 2026: include/libkrun.h, krun_add_vhost_user_device.


def libkrun(target: Target) -> str:
    """The call of its interface in C."""
    must_listen(target, "libkrun")
    if target.device_id == FS:
        raise HintError(
            "libkrun has no word for the tag of a vhost-user file system; "
            "it has virtio-fs of its own (krun_add_virtiofs)"
        )
    if target.device_id == 16:
        raise HintError("libkrun cannot have this vhost-user GPU: it has no display for one")
    sizes = ", ".join([str(target.queue_size)] * target.queues)
    return "\n".join(
        [
            order(target, "the machine"),
            *access(target, "the program with libkrun"),
            "# On Linux, with a libkrun that was built with vhost-user (else it is -ENOTSUP); it",
            "# shares the guest's memory by itself then.",
            f"krun_add_vhost_user_device(ctx, {target.device_id}, {c_string(target.socket)},",
            f"    {c_string(target.name)}, {target.queues}, (uint16_t[]){{{sizes}}});",
        ]
    )


def _with_unit(memory: str) -> str:
    """As OpenVMM has sizes (Guide/src/reference/openvmm/management/cli.md): 1GB."""
    return f"{memory}B" if memory[-1].isalpha() else memory
