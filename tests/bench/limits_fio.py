"""Limits as fio meets them, and as fio keeps them: three disks of one User-Mode Linux."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from tests.bench.backends import Missing
from tests.bench.limits import DEPTH, Limit, Sample, Side, image, ours, qemus
from vuproc.spec.virtio import DeviceId
from vuproc.testing.vms import ClientMissing, boot_uml

FIO = "fio, on vuproc"
MEMORY_MIB = 512
"""Of the guest: Debian's fio brings libraries of 80 MB."""
BOUND_S = 120.0
IOPS, P99 = 7, 29
"""Fields of fio's terse output, version 3: reads a second, and the 99th percentile of their
completion latency, as 99.000000%=MICROSECONDS.
"""


def program() -> Path:
    """fio, of any kind. Raises Missing."""
    found = shutil.which("fio")
    if found is None:
        raise Missing("there is no fio here")
    return Path(found)


def script(limit: Limit, sides: list[Side], rounds: int, seconds: float) -> str:
    """What the guest runs: it says when a run begins and ends, and what fio says of it."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    lines = [f"export LD_LIBRARY_PATH={libraries}"] if libraries else []
    for number in range(rounds):
        for disk, side in zip("abc", sides, strict=True):
            paced = ""
            if side.name == FIO:
                paced = f"--rate_iops={limit.iops}" if limit.iops else f"--rate={limit.bytes}"
            key = f"{disk}{number}"
            lines += [
                f"say begin-{key} yes",
                "fio --name=limits --thread --minimal --terse-version=3 --ioengine=libaio "
                f"--direct=1 --filename=/dev/vd{disk} --rw=randread --bs={limit.block} "
                f"--iodepth={DEPTH} --time_based --ramp_time={max(1, round(seconds / 2))} "
                f"--runtime={max(1, round(seconds))} {paced} >/tmp/out 2>/tmp/err",
                f'say end-{key} "$(tail -n1 /tmp/out)"',
            ]
    return "\n".join(["", *lines, ""])


def measure(limit: Limit, rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Samples of the three sides in turn. Raises Missing."""
    fio = program()
    with ExitStack() as stack:
        disk = stack.enter_context(image())
        sides = [
            stack.enter_context(ours(disk, limit)),
            stack.enter_context(qemus(disk, limit)),
            stack.enter_context(ours(disk, None, FIO)),
        ]
        devices = {side.socket: int(DeviceId.BLK) for side in sides}
        text = script(limit, sides, rounds, seconds)
        try:
            guest = stack.enter_context(
                boot_uml(devices, script=text, programs=[fio], memory_mib=MEMORY_MIB)
            )
        except ClientMissing as missing:
            raise Missing(str(missing)) from missing
        found: dict[str, list[Sample]] = {}
        for number in range(rounds):
            for letter, side in zip("abc", sides, strict=True):
                guest.wait_for(f"begin-{letter}{number}=yes", BOUND_S)
                before = side.ran()
                line = guest.wait_for(f"end-{letter}{number}=", BOUND_S)
                spent = side.ran() - before
                found.setdefault(side.name, []).append(_sample(line, limit, spent, seconds))
        guest.finish()
    return found


def _sample(line: str, limit: Limit, spent: int, seconds: float) -> Sample:
    fields = line.partition("=")[2].split(";")
    if len(fields) <= P99:
        raise Missing(f"fio has failed: {line[:200]}")
    iops = int(fields[IOPS])
    p99_ms = int(fields[P99].partition("=")[2]) / 1000
    took = max(1, round(seconds)) + max(1, round(seconds / 2))
    return Sample(iops / limit.requests, p99_ms, spent / 1e9 / took)
