"""fio with its libblkio engine, where a fio with that engine is installed."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.backends import Missing, Running
from tests.bench.clients import Outcome
from tests.bench.work import QUEUE_SIZE, Case

ENGINE = "libblkio"
TIMEOUT_S = 300.0


class Fio:
    """One fio a sample: it connects for each, so CPU time holds the connection's cost too.

    Its jobs are threads of one process, which share a connection and have a queue each.
    """

    name = "fio"
    protocols: tuple[str, ...] = ("vhost-user-blk",)

    @contextmanager
    def connect(self, running: Running, case: Case) -> Iterator[_Runs]:
        yield _Runs(program(), running, case)


class _Runs:
    def __init__(self, fio: str, running: Running, case: Case) -> None:
        work = case.work
        kind = {(False, False): "randread", (True, False): "randwrite", (False, True): "read"}
        self._command = [
            fio,
            "--name=bench",
            "--output-format=json",
            f"--ioengine={ENGINE}",
            "--libblkio_driver=virtio-blk-vhost-user",
            f"--libblkio_path={running.socket}",
            f"--libblkio_queue_size={QUEUE_SIZE}",
            f"--libblkio_wait_mode={'loop' if case.polls else 'eventfd'}",
            f"--rw={kind.get((work.writes, work.sequential), 'write')}",
            f"--bs={work.block}",
            f"--size={case.span}",
            f"--iodepth={case.depth}",
            f"--numjobs={case.queues}",
            "--thread",
            "--group_reporting",
            # Until number_ios, also where a round through the disk is shorter.
            "--loops=1000000",
        ]
        self._way = "write" if work.writes else "read"

    def pids(self) -> list[int]:
        return []

    def run(self, count: int) -> Outcome:
        done = subprocess.run(
            [*self._command, f"--number_ios={count}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise Missing(f"fio: {done.stderr.strip()[-200:]}")
        # Warnings may stand before the JSON.
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        return outcome(job, self._way)


def outcome(job: dict[str, Any], way: str) -> Outcome:
    """What one job of fio's report says; `way` is read or write."""
    found = job[way]
    percentiles = found["clat_ns"].get("percentile", {})
    return Outcome(
        found["total_ios"],
        job["error"],
        found["total_ios"] / found["iops"] if found["iops"] else found["runtime"] / 1000,
        float(percentiles.get("50.000000", 0.0)),
        float(percentiles.get("99.000000", 0.0)),
    )


@functools.cache
def program() -> str:
    found = shutil.which("fio")
    if found is None:
        raise Missing("there is no fio here")
    listed = subprocess.run([found, "--enghelp"], capture_output=True, text=True, check=False)
    if ENGINE not in listed.stdout.split():
        raise Missing("this fio was built without its libblkio engine")
    return found
