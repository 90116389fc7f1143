"""What `vuproc check --sandbox` prints: what each process of a device may do, and may not."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence

from vuproc.device_file.check import DeviceFile
from vuproc.device_file.sandboxed import policy_of
from vuproc.sandbox.bpf import ALLOW
from vuproc.sandbox.calls import NOT_OF_A_MASTER, worker_rules
from vuproc.sandbox.landlock import DEVICE, READ, WRITE
from vuproc.sandbox.lockdown import paths_of_all, paths_of_needs
from vuproc.sandbox.make import calls_of
from vuproc.sandbox.policy import Policy
from vuproc.sandbox.probe import lacks_of

WIDTH = 100
_ACCESS = {READ: "read", WRITE: "read, write, make, remove", DEVICE: "read, write, control"}


def sandbox_report(file: DeviceFile) -> str:
    """The whole, for people; a device class has been asked for its needs."""
    policy = policy_of(file, file.make_device())
    if policy is None:
        return "sandbox: off\n  every process may do what its user may"
    return "\n".join(_lines(file, policy))


def _lines(file: DeviceFile, policy: Policy) -> Iterator[str]:
    yield f"sandbox: {file.keys.sandboxed().mode}"
    yield "master, and what it starts: no new privileges; everything but the calls"
    yield from _wrapped(sorted(NOT_OF_A_MASTER))
    when = "before" if policy.early else "after"
    workers = " ".join(str(list(group)) for group in file.workers)
    yield f"workers of the queues {workers}, from {when} the device's setup on: what is open, and"
    yield from _paths([*paths_of_needs(policy), *paths_of_all(policy)])
    needs = policy.needs
    sockets = {False: "none is made", "unix": "of this machine (AF_UNIX)", True: "of all kinds"}
    yield f"  sockets: {sockets[needs.network]}"
    yield f"  capabilities: {', '.join(needs.capabilities) or 'none'}"
    yield f"  user namespace: {'as it is' if needs.capabilities else 'its own'}"
    yield f"  io_uring: {'yes' if policy.io_uring else 'no'}"
    yield "  signals: to itself; processes: none is made, threads are"
    postcopy = file.keys.postcopy
    calls = calls_of(policy, userfault=postcopy, any_ioctl=file.keys.xen != "off")
    rules = worker_rules(calls, os.getpid())
    whole = sorted(name for name, rule in rules.items() if rule.action == ALLOW and not rule.cases)
    partly = sorted(
        name
        for name, rule in rules.items()
        if rule.cases and ALLOW in (rule.action, *(case.action for case in rule.cases))
    )
    yield f"  system calls: {len(whole)}, and {len(partly)} with some arguments only"
    yield from _wrapped(whole)
    yield "  with some arguments only:"
    yield from _wrapped(partly)
    other = "end the worker" if policy.strict else "fail, and strange ones end the worker"
    yield f"  others {other}"
    lacks = lacks_of(policy)
    yield f"not to be had here: {'; '.join(lacks) or 'nothing'}"


def _paths(all_of_them: Sequence[tuple[Sequence[str], int]]) -> Iterator[str]:
    for names, access in all_of_them:
        there = [name for name in names if os.path.exists(name)]
        if there:
            yield f"  {_ACCESS[access]}:"
            yield from _wrapped(there)


def _wrapped(words: Sequence[str]) -> list[str]:
    indent = " " * 4
    return textwrap.wrap(
        " ".join(words),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
