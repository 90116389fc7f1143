"""A filter as the kernel runs it: an interpreter of the classic BPF that seccomp takes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vuproc.spec.system_calls import AUDIT_ARCHES, numbers

INSTRUCTION = struct.Struct("=HBBI")
DATA = struct.Struct("=iIQ6Q")
"""struct seccomp_data."""
STEPS_MOST = 4096


class Call(NamedTuple):
    """A system call as a filter sees it."""

    number: int
    arguments: Sequence[int] = ()
    machine: str = "x86_64"
    arch: int | None = None


def call(name: str, *arguments: int, machine: str = "x86_64") -> Call:
    return Call(numbers(machine)[name], arguments, machine)


def verdict(program: bytes, made: Call) -> int:
    """What the filter answers. AssertionError for a program that the kernel would not take."""
    code = [INSTRUCTION.unpack_from(program, at) for at in range(0, len(program), 8)]
    arch = AUDIT_ARCHES[made.machine] if made.arch is None else made.arch
    arguments = [value & (1 << 64) - 1 for value in made.arguments]
    data = DATA.pack(made.number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, at = 0, 0
    for _ in range(STEPS_MOST):
        assert at < len(code)
        operation, jump_true, jump_false, value = code[at]
        at += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert value % 4 == 0
                accumulator = int.from_bytes(data[value : value + 4], "little")
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += jump_true if accumulator >= value else jump_false
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += jump_true if accumulator == value else jump_false
            case 0x05:  # BPF_JMP | BPF_JA
                at += value
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= value
            case 0x06:  # BPF_RET | BPF_K
                return int(value)
            case _:
                raise AssertionError(f"operation {operation:#x}")
    raise AssertionError("it does not end")
