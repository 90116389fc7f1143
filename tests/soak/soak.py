"""Faults, one after the other, on a disk whose every request is verified."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tests.soak.deck import Act, acts, planned
from tests.soak.faults import FAULTS
from tests.soak.history import Event, History
from tests.soak.pauses import Pauses
from tests.soak.room import Room
from tests.soak.sample import Sample
from tests.soak.stage import Stage, staged

SAMPLES = 120
"""An act, at most."""
LEAST = 30
"""Faults of an act that has any: of a shorter one nothing would follow, and each takes its time."""


def soak(
    room: Room,
    *,
    scale: float,
    seed: int,
    is_over: Callable[[], bool],
    done: Mapping[str, int],
    tell: Callable[[str], None] = lambda _text: None,
    each: bool = False,
    only: Collection[str] = (),
) -> tuple[History, list[str]]:
    """Run it, and end early once it `is_over`; what was seen, and the device's log.

    scale: 1.0 for all that `Fault.full` says, less what was `done` before, by name. each: tell of
    every fault, too. only: these faults, by name. Nothing is raised for what the device does wrong.
    """
    history = History(seed)
    log: list[str] = []
    began = time.monotonic()
    try:
        with staged(room, seed) as stage, Pauses() as pauses:
            log = stage.served.lines
            for kind in FAULTS:
                obstacle = kind.obstacle(stage)
                if obstacle is not None:
                    history.left_out[kind.name] = obstacle
            kinds = [
                kind
                for kind in FAULTS
                if kind.name not in history.left_out and (not only or kind.name in only)
            ]
            history.planned = planned(kinds, scale)
            left = {
                name: max(0, count - done.get(name, 0)) for name, count in history.planned.items()
            }
            player = _Player(stage, history, pauses, began, is_over, tell, each)
            try:
                for act in acts(kinds, left, random.Random(seed)):
                    player.play(act)
                stage.finish()
            finally:
                history.requests = stage.findings.requests
                history.refused = stage.findings.refused
    except Exception as error:
        history.failure = f"{type(error).__name__}: {error}"
    history.seconds = time.monotonic() - began
    return history, log


@dataclass(frozen=True)
class _Player:
    """Has acts happen on the stage, and writes down what is seen."""

    stage: Stage
    history: History
    pauses: Pauses
    began: float
    is_over: Callable[[], bool]
    tell: Callable[[str], None]
    each: bool

    def play(self, act: Act) -> None:
        """Raises RuntimeError for the first fault that did not end well."""
        sampled = len(act.faults) >= LEAST
        every = max(1, len(act.faults) // SAMPLES)
        for number, fault in enumerate(act.faults):
            if self.is_over():
                break
            if sampled and number % every == 0:
                self._sample(act, number)
            self.stage.progress()
            if self.pauses.take():
                # A queue may note its stall so late that the next fault would have it.
                self.stage.progress()
            self.stage.take_stall()
            self.pauses.take()
            began = time.monotonic()
            if self.each:
                self.tell(f"{began - self.began:7.1f} s  {act.name}, {number}: {fault.name}")
            try:
                fault.strike(self.stage)
                self.stage.progress()
            except Exception as error:
                raise RuntimeError(
                    f"after a {fault.name} ({act.name}, {number}): {error}"
                ) from error
            now = time.monotonic()
            self.history.events.append(
                Event(
                    at_s=now - self.began,
                    fault=fault.name,
                    stall_s=self.stage.take_stall(),
                    took_s=now - began,
                    paused_s=self.pauses.take(),
                )
            )
        if sampled:
            self._sample(act, len(act.faults))

    def _sample(self, act: Act, number: int) -> None:
        self.stage.progress()
        sample = Sample.taken(self.stage, time.monotonic() - self.began)
        self.history.samples.setdefault(act.name, []).append(sample)
        memory = ", ".join(f"{role} {kib}" for role, kib in sample.memory.items())
        fds = ", ".join(f"{role} {count}" for role, count in sample.fds.items())
        self.tell(
            f"{sample.at_s:7.1f} s  {act.name}, {number} of {len(act.faults)}; KiB: {memory}; "
            f"descriptors: {fds}; segments: {sample.segments}, {sample.shm_kib} KiB; "
            f"processes: {sample.processes}, zombies: {sample.zombies}"
        )
