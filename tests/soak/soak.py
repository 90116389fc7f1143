"""Faults, one after the other, on a disk whose every request is verified."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection

from tests.soak.deck import Act, acts
from tests.soak.faults import FAULTS
from tests.soak.history import Event, History
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
    seconds: float,
    tell: Callable[[str], None] = lambda _text: None,
    each: bool = False,
    only: Collection[str] = (),
) -> tuple[History, list[str]]:
    """Run it, and end early after so many seconds; what was seen, and the device's log.

    scale: 1.0 for all that `Fault.full` says. each: tell of every fault, too. only:
    these faults, by name. Nothing is raised for what the device does wrong.
    """
    history = History(seed)
    log: list[str] = []
    began = time.monotonic()
    try:
        with staged(room, seed) as stage:
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
            program = acts(kinds, scale, random.Random(seed))
            for act in program:
                history.planned.update(fault.name for fault in act.faults)
            try:
                for act in program:
                    _play(stage, act, history, began, seconds, tell, each)
                stage.finish()
            finally:
                history.requests = stage.findings.requests
                history.refused = stage.findings.refused
    except Exception as error:
        history.failure = f"{type(error).__name__}: {error}"
    history.seconds = time.monotonic() - began
    return history, log


def _play(
    stage: Stage,
    act: Act,
    history: History,
    began: float,
    seconds: float,
    tell: Callable[[str], None],
    each: bool,
) -> None:
    samples = history.samples.setdefault(act.name, [])
    sampled = len(act.faults) >= LEAST
    every = max(1, len(act.faults) // SAMPLES)
    for number, fault in enumerate(act.faults):
        if time.monotonic() > began + seconds:
            break
        if sampled and number % every == 0:
            samples.append(_sample(stage, act, number, began, tell))
        stage.progress()
        stage.take_stall()
        if each:
            tell(f"{time.monotonic() - began:7.1f} s  {act.name}, {number}: {fault.name}")
        try:
            fault.strike(stage)
            stage.progress()
        except Exception as error:
            raise RuntimeError(f"after a {fault.name} ({act.name}, {number}): {error}") from error
        history.events.append(Event(time.monotonic() - began, fault.name, stage.take_stall()))
    if sampled:
        samples.append(_sample(stage, act, len(act.faults), began, tell))


def _sample(
    stage: Stage, act: Act, number: int, began: float, tell: Callable[[str], None]
) -> Sample:
    stage.progress()
    sample = Sample.taken(stage, time.monotonic() - began)
    memory = ", ".join(f"{role} {kib}" for role, kib in sample.memory.items())
    fds = ", ".join(f"{role} {count}" for role, count in sample.fds.items())
    tell(
        f"{sample.at_s:7.1f} s  {act.name}, {number} of {len(act.faults)}; KiB: {memory}; "
        f"descriptors: {fds}; segments: {sample.segments}, {sample.shm_kib} KiB; "
        f"processes: {sample.processes}, zombies: {sample.zombies}"
    )
    return sample
