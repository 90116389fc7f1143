"""A Linux guest that reads a file of the host: what `python -m tests.bench.fs --guest` does.

The guest is User-Mode Linux, whose own driver sleeps. One guest has a file system of each side, and
reads by one after the other: forth in one round and back in the next, as elsewhere. Its own time is
in the rate of READs; what a back-end takes of the CPUs is measured from outside.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import quiet
from tests.bench.backends import Missing, Running
from tests.bench.clients import compiled
from tests.bench.findings import Figures
from vuproc.errors import VuprocError
from vuproc.spec.virtio import DeviceId
from vuproc.testing.vms import ClientMissing, GuestFailed, LinuxGuest, boot_uml

Serving = Callable[[Path, Path, str], AbstractContextManager[Running]]
"""Serves a directory by a socket, which may be another than the given one, as what is mounted by a
tag.
"""

TAG = "bench"
"""The beginning of each side's."""
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
    with ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-")))
        served: dict[str, Running] = {}
        for side, serving in sides.items():
            tag = f"{TAG}{len(served)}"
            try:
                running = stack.enter_context(serving(directory, made / f"{tag}.sock", tag))
            except (Missing, OSError, VuprocError) as failure:
                missing[side] = str(failure)
            else:
                served[side] = running
        forth = list(served)
        order = [
            (number, side)
            for number in range(rounds)
            for side in (forth if number % 2 == 0 else forth[::-1])
        ]
        try:
            # Its name in the cache is none that the guest's shell takes for a function.
            program = Path(shutil.copy(compiled.build("reads"), made / "reads"))
            turns = [f"reads /mnt/{TAG}{forth.index(side)}/{name} {seconds}" for _, side in order]
            with _booted(list(served.values()), turns, program) as guest:
                for number, side in order:
                    guest.wait_for("ready")
                    for phase, reads in _phases(guest.wait_for, served[side].pids).items():
                        found[phase][side][number] = reads
                guest.finish()
        except (Missing, OSError, ClientMissing, GuestFailed) as failure:
            missing.update(dict.fromkeys(forth, str(failure)))
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


def _booted(served: Sequence[Running], turns: Sequence[str], program: Path) -> LinuxGuest:
    """A guest that mounts what is served, each by its tag, then runs `turns`. Raises
    ClientMissing, OSError.
    """
    tags = [f"{TAG}{number}" for number in range(len(served))]
    mounts = [f"mkdir /mnt/{tag} && mount -t virtiofs {tag} /mnt/{tag}" for tag in tags]
    script = "\n".join([*mounts, *turns, *(f"umount /mnt/{tag}" for tag in tags), ""])
    devices = {running.socket: DeviceId.FS for running in served}
    return boot_uml(devices, script=script, modules=("virtiofs",), programs=[program])


def _phases(wait_for: Callable[[str], str], pids: Callable[[], Sequence[int]]) -> dict[str, Reads]:
    found = {}
    for phase in PHASES:
        before = sum(quiet.times(pid).ran for pid in pids())
        _, count, spent_us = wait_for(phase).split()
        spent = sum(quiet.times(pid).ran for pid in pids()) - before
        found[phase] = Reads(int(count) * 1e6 / int(spent_us), spent / 1e3 / int(count))
    return found
