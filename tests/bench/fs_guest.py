"""A Linux guest that reads a file of the host: what `python -m tests.bench.fs --guest` does.

The guest is User-Mode Linux, whose own driver sleeps. It is booted anew for each sample, since it
takes no orders: forth in one round and back in the next, as elsewhere. Its own time is in
the rate of READs; what a back-end takes of the CPUs is measured from outside.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import quiet
from tests.bench.backends import Missing, Running
from tests.bench.clients import compiled
from tests.bench.findings import Figures
from vuproc.errors import VuprocError
from vuproc.spec.virtio import DeviceId
from vuproc.testing.vms import ClientMissing, GuestFailed, boot_uml

Serving = Callable[[Path, Path], AbstractContextManager[Running]]
"""Serves a directory by a socket, which may be another than the given one."""

TAG = "bench"
"""Of the mount; virtiofsd takes it from the option, UML asks for none."""
PHASES = {"random": "4 KiB at random, O_DIRECT", "sequential": "128 KiB in order, read ahead"}


@dataclass(frozen=True, slots=True)
class Reads:
    """One sample."""

    rate: float
    """Reads of the program a second."""
    cpu_us: float
    """Of the back-end's processes, a read."""


Samples = Mapping[str, Mapping[int, Reads]]
"""By side and number of the round."""


def measure(
    sides: Mapping[str, Serving], directory: Path, name: str, rounds: int, seconds: float
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Samples of each phase; and sides that were not measured, and why."""
    found: dict[str, dict[str, dict[int, Reads]]] = {
        phase: {side: {} for side in sides} for phase in PHASES
    }
    missing: dict[str, str] = {}
    for number in range(rounds):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            if side in missing:
                continue
            try:
                sample = _boot(sides[side], directory, name, seconds)
            except (Missing, OSError, VuprocError, ClientMissing, GuestFailed) as failure:
                missing[side] = str(failure)
                continue
            for phase, reads in sample.items():
                found[phase][side][number] = reads
    return dict(found), missing


def lines(found: Mapping[str, Samples], missing: Mapping[str, str], base: str) -> list[str]:
    """Tables of medians (least-most), and the ratios to `base` of the same round."""
    said = []
    for phase, samples in found.items():
        said += ["", f"{PHASES[phase]} (User-Mode Linux)"]
        for side, taken in samples.items():
            if not taken:
                continue
            rate = Figures.of(one.rate / 1e3 for one in taken.values())
            cpu = Figures.of(one.cpu_us for one in taken.values())
            text = f"{side:18} {rate.text(2):>22} thousand/s {cpu.text(2):>22} us CPU"
            both = taken.keys() & samples.get(base, {}).keys()
            if side != base and both:
                ratio = median(taken[i].rate / samples[base][i].rate for i in both)
                spent = median(taken[i].cpu_us / samples[base][i].cpu_us for i in both)
                text += f"  {ratio:.2f} of the rate, {spent:.2f} of the CPU time of {base}"
            said.append(text)
    return said + [f"not measured: {side}: {why}" for side, why in missing.items()]


def _boot(serving: Serving, directory: Path, name: str, seconds: float) -> dict[str, Reads]:
    """One guest's life. Raises what `measure` catches."""
    script = f"mount -t virtiofs {TAG} /mnt\nreads /mnt/{name} {seconds}\numount /mnt\n"
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as made:
        # Its name in the cache is none that the guest's shell takes for a function.
        reads = Path(shutil.copy(compiled.build("reads"), Path(made) / "reads"))
        with serving(directory, Path(made) / "fs.sock") as running:
            devices = {running.socket: DeviceId.FS}
            modules = ("virtiofs",)
            with boot_uml(devices, script=script, modules=modules, programs=[reads]) as guest:
                guest.wait_for("ready")
                return _phases(guest.wait_for, running.pids, guest.finish)


def _phases(
    wait_for: Callable[[str], str], pids: Callable[[], Sequence[int]], finish: Callable[[], object]
) -> dict[str, Reads]:
    found = {}
    for phase in PHASES:
        before = sum(quiet.times(pid).ran for pid in pids())
        _, count, spent_us = wait_for(phase).split()
        spent = sum(quiet.times(pid).ran for pid in pids()) - before
        found[phase] = Reads(int(count) * 1e6 / int(spent_us), spent / 1e3 / int(count))
    finish()
    return found
