"""A worker locks itself in: what takes time is made ready ahead, and then it is done at once.

What cannot be had here, since a kernel or a container has not got it, is left out and told.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
from collections.abc import Callable, Sequence

from vuproc.fd import Fd
from vuproc.sandbox import kernel, paths
from vuproc.sandbox.landlock import DEVICE, READ, WRITE, Ruleset
from vuproc.sandbox.needs import CAPABILITIES
from vuproc.sandbox.policy import ANY_PID, Policy
from vuproc.spec.system_calls import numbers

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_UNSHARE = numbers().get("unshare", -1)
_EVERYBODY = "0 0 4294967295"
"""A map of users that changes nothing: who may do what with which file stays as it was."""
_LIMITS = (resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO)
"""Limits that become 0. That of processes does not: the filter has no forks, and it would count
the user's other programs.
"""


_PID = struct.Struct("=I")


def paths_of_all(policy: Policy) -> list[tuple[Sequence[str], int]]:
    """What every worker of such a policy reaches, if it is there, and how: an `Access`."""
    found: list[tuple[Sequence[str], int]] = [
        (paths.ALWAYS, DEVICE),
        ((*paths.SYSTEM, *paths.of_python()), READ),
    ]
    if policy.needs.network is True:
        found.append((paths.RESOLVER, READ))
    return found


def paths_of_needs(policy: Policy) -> list[tuple[Sequence[str], int]]:
    """What the device or its file asks for."""
    needs = policy.needs
    return [(needs.files, WRITE), (needs.readable, READ), (needs.devices, DEVICE)]


class Lockdown:
    """One worker's sandbox: made when the device is, `close`d when it is to serve."""

    def __init__(self, policy: Policy) -> None:
        self.listener: Fd | None = None
        """The filter's, once it is closed: it hangs up when no thread of this process runs any
        more."""
        self._policy = policy
        self._lacks: list[str] = []
        self._ruleset = self._made_ruleset()
        self._missing = [] if self._ruleset is None else self._allow(self._ruleset)

    @property
    def strict(self) -> bool:
        """Whether it is to be closed before the device's `setup`."""
        return self._policy.strict

    @property
    def early(self) -> bool:
        """Whether it is to be closed as soon as there is nothing else to do. Paths that are missing
        may be there later.
        """
        return self._policy.early and not self._missing

    def close(self) -> tuple[str, ...]:
        """Lock this process in, for good; what could not be had, in words."""
        self._try("limits", _limit)
        self._enter_namespaces()
        self._try("capabilities", lambda: kernel.keep_capabilities(self._kept()))
        self._try("no new privileges", _no_new_privileges)
        self._restrict_files()
        kernel.prctl(_PR_SET_DUMPABLE, 0)
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # what was given up may have undone it
        self._try("filter of system calls (seccomp)", self._filter)
        return tuple(self._lacks)

    # Files.

    def _made_ruleset(self) -> Ruleset | None:
        network = self._policy.needs.network
        try:
            return Ruleset(tcp=network is True, sockets=network is not False)
        except OSError as error:
            self._lacks.append(f"files (Landlock): {error.strerror}")
            return None

    def _allow(self, ruleset: Ruleset) -> list[str]:
        """The device's own that are not there yet."""
        for names, access in paths_of_all(self._policy):
            ruleset.allow(names, access)
        return self._allow_needs(ruleset)

    def _allow_needs(self, ruleset: Ruleset) -> list[str]:
        needs = paths_of_needs(self._policy)
        return [path for names, access in needs for path in ruleset.allow(names, access)]

    def _restrict_files(self) -> None:
        ruleset = self._ruleset
        if ruleset is None:
            return
        if self._missing:
            self._missing = self._allow_needs(ruleset)
        self._lacks += [f"{path}: not there, so out of reach" for path in self._missing]
        others = _threads() - 1
        self._try("files (Landlock)", ruleset.restrict)
        if others:
            # Landlock binds a thread and its children; the filter binds all of them.
            self._lacks.append(
                f"files (Landlock) and capabilities: not for {others} "
                f"thread{'s' * (others > 1)} that the device has started in setup"
            )

    # Privileges.

    def _kept(self) -> int:
        return sum(1 << CAPABILITIES.index(name) for name in self._policy.needs.capabilities)

    def _enter_namespaces(self) -> None:
        """A user namespace of its own; whatever powers it may get by a mistake of the kernel's are
        over nothing. With io_uring a network of its own as well, which is empty: no filter sees
        what io_uring does.
        """
        needs = self._policy.needs
        if needs.capabilities:
            return  # which are over what is outside
        if _threads() > 1:
            self._lacks.append("user namespace: the device has started threads in setup")
            return
        flags = _CLONE_NEWUSER
        if self._policy.io_uring and needs.network is False:
            flags |= _CLONE_NEWNET
        self._try("user namespace", lambda: _unshare(flags))

    def _filter(self) -> None:
        program = self._policy.program
        if not program:
            raise OSError(errno.ENOSYS, f"not made for {os.uname().machine}")
        program = program.replace(_PID.pack(ANY_PID), _PID.pack(os.getpid()))
        try:
            self.listener = Fd(kernel.seccomp_listener(program))
        except OSError:
            kernel.seccomp(program)  # the kernel, or who runs us, has no listener for us

    def _try(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._lacks.append(f"{what}: {reason}")


def _limit() -> None:
    for limit in _LIMITS:
        resource.setrlimit(limit, (0, 0))


def _threads() -> int:
    """Of this process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


def _no_new_privileges() -> None:
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _unshare(flags: int) -> None:
    user, group = os.geteuid(), os.getegid()
    # Its own entries in /proc are another's as long as it hides its memory.
    kernel.prctl(_PR_SET_DUMPABLE, 1)
    kernel.call(_UNSHARE, flags)
    if not _write("uid_map", _EVERYBODY):
        _write("uid_map", f"{user} {user} 1")
    if not _write("gid_map", _EVERYBODY):
        _write("setgroups", "deny")
        _write("gid_map", f"{group} {group} 1")


def _write(name: str, content: str) -> bool:
    try:
        with Fd(os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)) as file:
            os.write(file.fileno(), content.encode())
    except OSError:
        return False
    return True
