"""Crash tests of the real ring code: a worker dies at each store to shared memory, once or twice.

Run by `tests.crash.test_crash` with the instrumented units first in PYTHONPATH; by hand as

    PYTHONPATH=BUILD:. python -m tests.crash.sweep single batch

where BUILD is what `tests.crash.build.crash_build` returns. Prints one JSON object a scenario.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tests.crash.driver import Driver, Wrong
from tests.crash.packed_driver import PackedDriver
from tests.crash.scenario import PACKED, PACKED_SMALL, SCENARIOS, SMALL, Scenario
from tests.crash.worker import (
    BEGUN,
    IDLE,
    RAN,
    SKIPPED,
    STOP,
    STOPPED,
    Journal,
    Worker,
    crash_words,
    live,
)

NEVER = 0
DEADLINE_S = 20
"""Whole seconds for a worker to go to sleep: it only ends a run that is wrong already."""
MANY = 60
"""Requests of a run with random crashes."""


@dataclass
class Report:
    """What came out of all runs of one scenario."""

    scenario: str
    stores: int = 0
    """Of a run without a crash, the test's own crash points included."""
    runs: int = 0
    crashes: int = 0
    executions: Counter[int] = field(default_factory=Counter)
    """Requests by the number of times that they were executed."""
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """One run: a driver with its load, and lives that end where `plan` says."""

    def __init__(self, scenario: Scenario, journal: Journal, plan: list[int]) -> None:
        self.scenario = scenario
        self.journal = journal
        self.plan = plan
        self.words = crash_words()
        self.driver: Driver = (PackedDriver if scenario.packed else Driver)(scenario)
        self.record = os.memfd_create("record", os.MFD_CLOEXEC)
        os.ftruncate(self.record, self.driver.record_bytes())
        self.kept = False
        """What the device gave back is still in the record at the end."""
        self.lives = 0
        self.started = False
        self.stores: list[int] = []
        """Of each life."""

    def carry_out(self) -> None:
        """Raises `Wrong` if a promise was broken."""
        self.journal.clear()
        try:
            self.driver.submit()
            while not self._live():
                pass
            self._check()
        finally:
            self.driver.close()
            os.close(self.record)

    @property
    def crashes(self) -> int:
        return self.lives - 1

    def _live(self) -> bool:
        """One life, to its violent end (False) or until all is done."""
        self.words[0] = 0
        self.words[1] = self.plan[self.lives] if self.lives < len(self.plan) else NEVER
        self.driver.new_worker()
        life, new = self.lives, not self.started
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            live(
                theirs.fileno(),
                lambda: Worker(self.driver, self.record, self.journal, life, new=new),
            )
        theirs.close()
        self.lives += 1
        try:
            return self._watch(ours)
        finally:
            ours.close()
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            self.stores.append(self.words[0])

    def _watch(self, control: socket.socket) -> bool:
        for message in self._messages(control):
            match message[:1]:
                case b"":
                    # What the dead one sent still wakes the driver.
                    self.driver.interrupted()
                    return False
                case b"d":
                    self.started = True
                case b"i":
                    _, kicks = IDLE.unpack(message)
                    if self._sleeps(kicks):
                        with suppress(BrokenPipeError):  # it died since
                            control.send(STOP)
                case b"s":
                    _, base = STOPPED.unpack(message)
                    self.kept = self.crashes > 0 and base == self.driver.end_if_kept()
                    if base != self.driver.end() and not self.kept:
                        raise Wrong(f"the ring stopped at {base:#x}, not {self.driver.end():#x}")
                    return True
                case _:
                    raise Wrong(message.decode())
        raise AssertionError("a connection has an end")

    def _messages(self, control: socket.socket) -> Iterator[bytes]:
        poller = select.poll()
        poller.register(control, select.POLLIN)
        if self.scenario.alert:
            poller.register(self.driver.guest.call, select.POLLIN)
        while True:
            # In steps: a time in which nobody on the machine gets on counts as one of them.
            for _ in range(DEADLINE_S):
                ready = [fd for fd, _ in poller.poll(1000)]
                if ready:
                    break
            else:
                raise Wrong("the worker does not get to its end")
            if control.fileno() in ready:
                try:
                    yield control.recv(8192)
                except ConnectionResetError:
                    # It died with a command unread; what it sent is still to come.
                    continue
            else:
                self.driver.interrupted()

    def _sleeps(self, kicks: int) -> bool:
        """The worker sleeps after so many kicks: give it one, or see that all is done (True)."""
        before = self.driver.kicks
        if before > kicks:
            return False
        progress = self.driver.interrupted()
        if self.driver.kicks > before:
            return False
        if self.driver.done:
            return True
        if progress and self.driver.waiting:
            raise Wrong("the device did not ask for the kick that it needs")
        raise Wrong(f"hang: {len(self.driver.waiting)} requests wait for an interrupt or a kick")

    def _check(self) -> None:
        """What the driver cannot see."""
        entries = self.journal.entries()
        for life in range(self.lives):
            order = [number for where, number, kind in entries if where == life and kind != RAN]
            if order != sorted(set(order)):
                raise Wrong(f"life {life} served {order}, which is not the order of the fetches")
        ran = Counter(number for _, number, kind in entries if kind == RAN)
        begun = {number for _, number, kind in entries if kind == BEGUN}
        skipped = {number for _, number, kind in entries if kind == SKIPPED}
        # Of a batch all are begun at once, as far as the ring knows.
        if not self.driver.scenario.gathers and not begun >= skipped:
            raise Wrong("a request was skipped which the device had never begun")
        answered = self.scenario.total - self.scenario.held
        if any(number > answered for _, number, _ in entries):
            raise Wrong("a request was begun that was to be given back")
        for number in range(1, answered + 1):
            if self.driver.lengths[number] and not ran[number]:
                raise Wrong(f"request {number} was completed and never executed")
            most = 1 if self.scenario.at_most_once else 1 + self.crashes
            if ran[number] > most:
                raise Wrong(f"request {number} was executed {ran[number]} times")
        self.driver.check_image()
        self.driver.check_log()
        if not self.driver.guest.intact():
            raise Wrong("bytes outside of guest memory were changed")
        # Version 0, and no mark is left; or just what was to be kept.
        marks = [os.pread(self.record, 1, at)[0] for at in self.driver.marks()]
        version = int.from_bytes(os.pread(self.record, 2, 8), "little")
        if version != self.kept or sum(marks) != self.kept * self.scenario.held:
            raise Wrong(f"version {version} and marks {marks} in the record after a clean stop")


Plans = Callable[[Run | None], list[int] | None]
"""Makes the next plan from the run before, first from None; None at the end."""


def run_all(scenario: Scenario, plans: Plans) -> Report:
    """Carry out plan after plan."""
    report = Report(scenario.name)
    journal = Journal()
    began = time.monotonic()
    run: Run | None = None
    while (plan := plans(run)) is not None:
        run = Run(scenario, journal, plan)
        try:
            run.carry_out()
        except Wrong as error:
            report.failures.append(f"died at {plan}: {error}")
        report.runs += 1
        report.crashes += run.crashes
        if not plan:
            report.stores = run.stores[0]
        entries = journal.entries()
        ran = Counter(number for _, number, kind in entries if kind == RAN)
        report.executions.update(Counter(ran.values()))
        report.skipped += sum(kind == SKIPPED for _, _, kind in entries)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def single() -> Plans:
    """No crash, then one at each store until there is none left to die at.

    How many there are varies a bit: a request that takes long is published by itself.
    """
    least = 0

    def next_plan(run: Run | None) -> list[int] | None:
        nonlocal least
        if run is None:
            return []
        if not run.plan:
            least = run.stores[0]
            return [1]
        return [run.plan[0] + 1] if run.crashes or run.plan[0] < least else None

    return next_plan


def double(share: int, shares: int) -> Plans:
    """No crash, then one at each store of the first life with one at each store of the second.

    Of the stores of the first life, every `shares`th from `share` on: several processes share them.
    """

    def next_plan(run: Run | None) -> list[int] | None:
        if run is None:
            return []
        if not run.plan:
            return [1 + share, 1]
        first, second = run.plan
        if run.crashes == 2:
            return [first, second + 1]
        return [first + shares, 1] if run.crashes else None

    return next_plan


def chance(seed: int, runs: int) -> Plans:
    """Up to ten crashes a run, at random stores.

    Each life gets far enough to complete what its predecessor died over: three deaths over one
    request would make it a poison.
    """
    source = random.Random(seed)
    left = runs

    def next_plan(run: Run | None) -> list[int] | None:
        nonlocal left
        if run is None:
            return []
        left -= 1
        if left < 0:
            return None
        return [source.randrange(70, 160) for _ in range(source.randrange(1, 11))]

    return next_plan


def main() -> int:
    """Print a report a scenario; 1 if any run failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["single", "double", "chance"])
    parser.add_argument("scenario", nargs="*", help="names; none: all of the kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--share", type=int, default=0, help="with --shares: which one")
    parser.add_argument("--shares", type=int, default=1, help="processes that share pairs")
    options = parser.parse_args()
    large, small = (*SCENARIOS, *PACKED), (*SMALL, *PACKED_SMALL)
    known = {scenario.name: scenario for scenario in (*large, *small)}
    names = options.scenario or [s.name for s in (small if options.kind == "double" else large)]
    gc.freeze()
    failed = False
    kinds: dict[str, Callable[[], Plans]] = {
        "single": single,
        "double": lambda: double(options.share, options.shares),
        "chance": lambda: chance(options.seed, options.runs),
    }
    for name in names:
        plans = kinds[options.kind]()
        scenario = known[name]
        if options.kind == "chance":
            scenario = replace(scenario, total=MANY)
        report = run_all(scenario, plans)
        failed |= bool(report.failures)
        print(json.dumps(vars(report)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
