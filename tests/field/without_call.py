"""A command that is refused one system call: python without_call.py NUMBER ERRNO COMMAND...

As a sandbox does, by a seccomp filter. Exit code 77: there is no such thing as a filter here.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

NUMBERS = {
    "x86_64": {"memfd_create": 319, "pidfd_open": 434, "splice": 275, "userfaultfd": 323},
    "aarch64": {"memfd_create": 279, "pidfd_open": 434, "splice": 76, "userfaultfd": 282},
}
"""By the machine's name (os.uname)."""
NO_FILTER = 77

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h


def refuse(call: int, errno: int) -> None:
    """From now on the call fails with this errno, here and in every child. Raises OSError."""
    filters = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD_WORD, 0, 0, 0),  # the call's number
            (_JUMP_EQUAL, 0, 1, call),
            (_RETURN, 0, 0, _ERRNO | errno),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    code = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("@HP", len(filters) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    try:
        refuse(int(sys.argv[1]), int(sys.argv[2]))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_FILTER)
    os.execvp(sys.argv[3], sys.argv[3:])
