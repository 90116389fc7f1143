"""What a device holds at a moment when every process is there that is to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.field.running import children, descendants
from tests.open_files import open_files
from tests.soak.stage import Stage

KEEPER, MASTER, FORKSERVER = "keeper", "master", "forkserver"
WORKERS, STANDBY_MASTER = "workers", "standby master"
ROLES = (KEEPER, MASTER, FORKSERVER, WORKERS, STANDBY_MASTER)


@dataclass(frozen=True)
class Sample:
    """One look. Memory in KiB, without what is shared by files."""

    at_s: float
    connections: int
    master: int
    """Its pid: another one begins anew."""
    memory: dict[str, int]
    """By role: anonymous memory; of the workers all, with the standby."""
    fds: dict[str, int]
    processes: int
    zombies: int
    segments: int
    shm_kib: int
    files: int
    """Beside the device file."""

    @staticmethod
    def taken(stage: Stage, at_s: float) -> Sample:
        """Of what there is now; a process that ends meanwhile has it begin anew."""
        while True:
            status = stage.settle()
            try:
                return _look(stage, status.pid, status.standby_master or 0, at_s)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def values(self) -> Iterator[tuple[str, str, int]]:
        """(what, whose, how much), of all that is not to grow."""
        for role in KEEPER, MASTER, FORKSERVER:
            yield "memory", role, self.memory[role]
            yield "descriptors", role, self.fds[role]
        for role in WORKERS, STANDBY_MASTER:
            yield "descriptors", role, self.fds[role]
        yield "processes", "device", self.processes
        yield "zombies", "device", self.zombies
        yield "segments", "/dev/shm", self.segments
        yield "memory", "/dev/shm", self.shm_kib
        yield "files", "folder", self.files


def _look(stage: Stage, master: int, standby: int, at_s: float) -> Sample:
    forkserver = children(master)[0]
    pids = {
        KEEPER: [stage.keeper],
        MASTER: [master],
        FORKSERVER: [forkserver],
        WORKERS: children(forkserver),
        STANDBY_MASTER: [standby, *descendants(standby)],
    }
    shm = os.statvfs("/dev/shm")
    everyone = stage.processes()
    return Sample(
        at_s=at_s,
        connections=stage.connections,
        master=master,
        memory={role: sum(map(_anonymous_kib, each)) for role, each in pids.items()},
        fds={role: sum(map(open_files, each)) for role, each in pids.items()},
        processes=len(everyone),
        zombies=sum(map(_is_zombie, everyone)),
        segments=stage.room.segments,
        shm_kib=(shm.f_blocks - shm.f_bfree) * shm.f_frsize // 1024,
        files=len(os.listdir(stage.room.folder)),
    )


def _anonymous_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def _is_zombie(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2]
    return state.startswith("Z")
