"""From a mode and needs to a policy: in the master, once for all of a device's workers."""

from __future__ import annotations

import itertools
import os

from vuproc.sandbox.calls import Calls, Network, master_filter, worker_filter
from vuproc.sandbox.needs import Needs
from vuproc.sandbox.policy import ANY_PID, Mode, Policy
from vuproc.spec.system_calls import AUDIT_ARCHES

_NETWORKS: dict[bool | str, Network] = {False: "off", "unix": "unix", True: "on"}


def make_policy(
    mode: Mode,
    needs: Needs,
    *,
    early: bool = False,
    userfault: bool = False,
    any_ioctl: bool = False,
) -> Policy | None:
    """None for `off`. `early`: the device's `setup` has no need of what a worker gives up;
    `userfault`: pages of guest memory may come later (postcopy); `any_ioctl`: it is mapped by
    ioctls (Xen).
    """
    if mode == "off":
        return None
    strict = mode == "strict"
    policy = Policy(strict=strict, needs=needs, program=b"")
    calls = calls_of(policy, userfault=userfault, any_ioctl=any_ioctl)
    program = b""
    if os.uname().machine in AUDIT_ARCHES:
        program = worker_filter(calls, ANY_PID)
    return Policy(strict=strict, early=strict or early, needs=needs, program=program)


def warm_up() -> None:
    """Have the filters made that most devices have: forks of this process find them done."""
    if os.uname().machine in AUDIT_ARCHES:
        master_filter()
        for attributes, uring in itertools.product((False, True), repeat=2):
            worker_filter(Calls(attributes=attributes, uring=uring), ANY_PID)


def calls_of(policy: Policy, *, userfault: bool = False, any_ioctl: bool = False) -> Calls:
    """What the filter of such a policy lets a worker do."""
    needs = policy.needs
    return Calls(
        strict=policy.strict,
        attributes=bool(needs.files),
        network=_NETWORKS[needs.network],
        uring=policy.io_uring,
        userfault=userfault,
        ioctls=not policy.strict or any_ioctl or userfault or bool(needs.devices),
    )
