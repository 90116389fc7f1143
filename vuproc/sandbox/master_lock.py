"""What a master gives up, and all that it starts with it: powers that nothing of ours has use for.

No Landlock: a reload may name any file, and an upgrade starts a program from wherever it lies. What
is given up stays so over an exec; a successor that has the filter already adds none.
"""

from __future__ import annotations

import os

from vuproc.sandbox import kernel
from vuproc.sandbox.calls import FILTER_ERRNO, MARK, master_filter
from vuproc.spec.system_calls import AUDIT_ARCHES, numbers

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def lock_master() -> list[str]:
    """Lock this process in; what could not be had, in words."""
    lacks = []
    kernel.prctl(_PR_SET_DUMPABLE, 0)
    try:
        kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        lacks.append(f"no new privileges, in the master: {error.strerror}")
    try:
        if not is_filtered():
            _filter()
    except OSError as error:
        lacks.append(f"filter of system calls (seccomp), in the master: {error.strerror}")
    return lacks


def is_filtered() -> bool:
    """Whether a master's filter of this version is in force."""
    number = numbers().get("ptrace")
    if number is None:
        return False
    try:
        kernel.call(number, MARK)
    except OSError as error:
        return error.errno == FILTER_ERRNO
    return False


def _filter() -> None:
    machine = os.uname().machine
    if machine not in AUDIT_ARCHES:
        raise OSError(0, f"not made for {machine}")
    kernel.seccomp(master_filter())
