"""A filter of system calls as classic BPF (seccomp(2)): rules by number in, a program out.

The numbers are found by halving, not one after another: what a call costs hardly depends on how
many rules there are, and neither does what the kernel takes to look at a new filter.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vuproc.spec.system_calls import X32_BIT

ALLOW = 0x7FFF0000
TRAP = 0x00030000
"""SIGSYS, whose handler says which call it was."""
KILL = 0x80000000
"""The whole process, at once."""
ERRNO = 0x00050000
"""With an errno in the lower half."""

_ERRNO_MOST = 4095
_LOAD, _GREATER_EQUAL, _EQUAL, _JUMP, _AND, _RETURN = 0x20, 0x35, 0x15, 0x05, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_SHORT = 255
"""Instructions that a conditional jump can leap over."""
_INSTRUCTION = struct.Struct("=HBBI")


def fails_with(errno: int) -> int:
    """The action that has a call fail, unmade."""
    if not 0 < errno <= _ERRNO_MOST:
        raise ValueError(f"errno {errno}")
    return ERRNO | errno


class Bits(NamedTuple):
    """True of a call if `mask` of the lower 32 bits of its argument is `value`; the kernel itself
    looks at no more of an int.
    """

    argument: int
    mask: int
    value: int


class Case(NamedTuple):
    """What is done with a call for which all of `when` is true."""

    when: tuple[Bits, ...]
    action: int


class Rule(NamedTuple):
    """What is done with a call: the first case that fits, else `action`."""

    action: int
    cases: tuple[Case, ...] = ()


_Code = list[tuple[int, int, int, int]]


def program(arch: int, rules: Mapping[int, Rule], default: int, unknown: int) -> bytes:
    """The filter: `rules` by number, `default` for other calls up to the highest that is known (the
    highest of `rules`), `unknown` beyond that. What comes by another ABI ends the process.
    """
    ranges = _ranges(rules, Rule(default), Rule(unknown))
    code: _Code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *_halves(ranges),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _ranges(rules: Mapping[int, Rule], default: Rule, unknown: Rule) -> Sequence[tuple[int, Rule]]:
    """Where each run of calls with one rule begins."""
    found: list[tuple[int, Rule]] = []
    for number in range(max(rules, default=-1) + 1):
        rule = rules.get(number, default)
        if not found or found[-1][1] != rule:
            found.append((number, rule))
    found.append((max(rules, default=-1) + 1, unknown))
    found.append((X32_BIT, Rule(KILL)))
    return found


def _halves(ranges: Sequence[tuple[int, Rule]]) -> _Code:
    if len(ranges) == 1:
        return _rule(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _halves(ranges[:middle]), _halves(ranges[middle:])
    pivot = ranges[middle][0]
    if len(below) <= _SHORT:
        return [(_GREATER_EQUAL, len(below), 0, pivot), *below, *above]
    return [(_GREATER_EQUAL, 0, 1, pivot), (_JUMP, 0, 0, len(below)), *below, *above]


def _rule(rule: Rule) -> _Code:
    code: _Code = [(_RETURN, 0, 0, rule.action)]
    for case in reversed(rule.cases):
        code = [*_case(case), *code]
    return code


def _case(case: Case) -> _Code:
    """Returns, or goes on behind itself."""
    code: _Code = [(_RETURN, 0, 0, case.action)]
    for bits in reversed(case.when):
        # Little-endian: the lower half comes first. Every machine in `system_calls` is.
        code = [
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * bits.argument),
            (_AND, 0, 0, bits.mask),
            (_EQUAL, 0, len(code), bits.value),
            *code,
        ]
    return code
