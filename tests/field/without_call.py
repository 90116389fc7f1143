"""A command that is refused one system call: python without_call.py NUMBER ERRNO COMMAND...

NUMBER:THIRD refuses it with this third argument alone. As a sandbox does, by a seccomp filter. Exit
code 77: there is no such thing as a filter here.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

NUMBERS = {
    "x86_64": {
        "memfd_create": 319,
        "pidfd_open": 434,
        "setsockopt": 54,
        "splice": 275,
        "userfaultfd": 323,
    },
    "aarch64": {
        "memfd_create": 279,
        "pidfd_open": 434,
        "setsockopt": 208,
        "splice": 76,
        "userfaultfd": 282,
    },
}
"""By the machine's name (os.uname)."""
NO_FILTER = 77

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_THIRD = 32  # struct seccomp_data: the lower half of args[2], on a little-endian machine
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h


def refuse(call: int, errno: int, third: int | None = None) -> None:
    """From now on the call fails with this errno, here and in every child; only with this third
    argument, if one is given. Raises OSError.
    """
    argument = ((_LOAD_WORD, 0, 0, _THIRD), (_JUMP_EQUAL, 0, 1, third))
    only = () if third is None else argument
    filters = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD_WORD, 0, 0, 0),  # the call's number
            (_JUMP_EQUAL, 0, 1 + len(only), call),  # else the last one
            *only,
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
        refused, _, argument = sys.argv[1].partition(":")
        refuse(int(refused), int(sys.argv[2]), int(argument) if argument else None)
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_FILTER)
    os.execvp(sys.argv[3], sys.argv[3:])
