"""The sandbox of a device file's workers: what their class needs and the file adds, as a policy."""

from __future__ import annotations

from vuproc.device import Device
from vuproc.device_file.check import DeviceFile
from vuproc.sandbox.make import make_policy
from vuproc.sandbox.needs import Needs, existing
from vuproc.sandbox.policy import Policy, absolute

XEN_DEVICES = ("/dev/xen/gntdev", "/dev/xen/privcmd")


def policy_of(file: DeviceFile, device: Device) -> Policy | None:
    """None if there is to be no sandbox."""
    keys = file.keys
    wanted = keys.sandboxed()
    return make_policy(
        wanted.mode,
        needs_of(file, device),
        early=device.opens_nothing(),
        userfault=keys.postcopy,
        any_ioctl=keys.xen != "off",
    )


def needs_of(file: DeviceFile, device: Device) -> Needs:
    """With absolute paths."""
    needs = device.sandbox_needs().with_more(file.keys.sandboxed().needs())
    if file.keys.xen != "off":
        needs = needs.with_more(Needs(devices=existing(*XEN_DEVICES), capabilities=("SYS_ADMIN",)))
    if file.keys.postcopy:
        # Faults that the kernel meets, too, take that much.
        needs = needs.with_more(
            Needs(devices=existing("/dev/userfaultfd"), capabilities=("SYS_PTRACE",))
        )
    return absolute(needs, str(file.base_dir))
