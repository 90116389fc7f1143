"""What the processes of a served device hold, seen from outside through /proc."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass

_ANONYMOUS = re.compile(r"\[\d+\]$")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process: its parent, and the descriptors that it holds, counted by what they are."""

    pid: int
    parent: int
    files: Counter[str]


def family(leader: int) -> dict[int, Process]:
    """`leader` and all its descendants, by process id."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat(int(entry))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    members = {leader}
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    found = {}
    for pid in members:
        try:
            found[pid] = Process(pid, parents.get(pid, 0), files_of(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
    return found


def files_of(pid: int) -> Counter[str]:
    """The kinds of what a process has open: `socket:`, `anon_inode:[eventfd]`, a path."""
    kinds: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            kinds[_ANONYMOUS.sub("", os.readlink(f"/proc/{pid}/fd/{entry}"))] += 1
        except FileNotFoundError:
            continue
    return kinds


def resident(pid: int) -> int:
    """Bytes of resident memory that a process has asked for: no pages of files, mapped by others or
    not.
    """
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        asked = [line.split() for line in rollup if line.startswith("Anonymous:")]
    return sum(int(fields[1]) * 1024 for fields in asked)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def guest_mappings(pid: int) -> list[str]:
    """The lines of a process's memory map that are guest memory of the tests."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return [line.rstrip() for line in maps if "memfd:guest-ram" in line]


def guest_mapping_flags(pid: int) -> list[set[str]]:
    """The flags of each mapping of the tests' guest memory (VmFlags in proc_pid_smaps(5))."""
    flags, ours = [], False
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as smaps:
        for line in smaps:
            if line.startswith("VmFlags:"):
                if ours:
                    flags.append(set(line.split()[1:]))
            elif not line.split(" ", 1)[0].endswith(":"):
                ours = "memfd:guest-ram" in line
    return flags


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", "rb") as status:
        return status.read().decode(errors="replace").rpartition(")")[2].split()
