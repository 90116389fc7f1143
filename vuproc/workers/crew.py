"""All workers of one device: carries out the session's effects on them and replaces those that die.

Each *seat* serves one group of queues and holds at most one process. An effect is carried out on
every seat that it concerns before `perform` returns. A worker lost on the way is killed, replaced,
brought to where the session's state says, and asked once more.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Sequence

from vuproc import control, effects
from vuproc.config_space import ConfigSpace
from vuproc.control import AnyCommand, Logged, RingBroken
from vuproc.effects import Effect, EffectFailed
from vuproc.fd import Fd, FdKind
from vuproc.workers.seat import Seat
from vuproc.workers.supervise import (
    COMMAND_DEADLINE,
    WorkerLost,
    WorkerProcess,
    WorkerRefused,
    WorkerSetupError,
    name_queues,
)

log = logging.getLogger("vuproc.master")

STOP_DEADLINE = 3.0
"""Seconds a worker has to finish what is in flight before its ring stops; then it is killed
instead.
"""

Prepared = tuple[AnyCommand, tuple[Fd, ...]]


class Crew:
    """The workers of one device.

    `replay(queue)` yields the effects that bring a fresh worker of that queue to the session's
    committed state; `on_broken(queue, cause)` is told of each ring that breaks.
    """

    def __init__(
        self,
        spawn: Callable[[tuple[int, ...], Callable[[RingBroken | Logged], None]], WorkerProcess],
        groups: Sequence[tuple[int, ...]],
        config: ConfigSpace,
        replay: Callable[[tuple[int, ...]], Sequence[Effect]],
        on_broken: Callable[[int, str], None],
    ) -> None:
        self._config = config
        self._replay = replay
        self._on_broken = on_broken
        self._broken: dict[int, str] = {}
        self._stopped: set[int] = set()
        self.seats = [Seat(queues, lambda q: spawn(q, self._report)) for queues in groups]
        self._seat_of = {queue: seat for seat in self.seats for queue in seat.queues}

    def start(self) -> None:
        """Start every worker. Raises `WorkerSetupError`."""
        for seat in self.seats:
            seat.spawn()

    def stop(self, timeout: float) -> None:
        """End every worker, by force those that do not within `timeout` seconds each."""
        for seat in self.seats:
            if seat.worker is not None:
                seat.worker.exit(timeout)
                seat.worker = None

    # Effects.

    def perform(self, effect: Effect) -> int | bytes | EffectFailed | None:
        """Carry out one effect everywhere it matters; the result is what `Step.finish` takes."""
        try:
            return self._perform(effect)
        except (WorkerRefused, WorkerLost, WorkerSetupError) as error:
            return EffectFailed(str(error))

    def _perform(self, effect: Effect) -> int | bytes | None:
        match effect:
            case effects.ReadConfig(offset=offset, size=size):
                return self._config.read(offset, size)
            case effects.WriteConfig(offset=offset, data=data):
                before = self._config.read(offset, len(data))
                undo = control.WriteConfig(offset=offset, data=before)
                self._everywhere((control.WriteConfig(offset=offset, data=data), ()), (undo, ()))
                self._config.write(offset, data)
            case effects.SetMemory() | effects.AddRegion() | effects.RemoveRegion():
                self._everywhere(_prepared(effect), self._undo_memory(effect))
            case effects.SetFeatures():
                self._everywhere(_prepared(effect), None)
            case effects.ResetDevice():
                self._everywhere(_prepared(effect), None)
                self._config.reset()
            case effects.StartRing(setup=setup):
                self._broken.pop(setup.index, None)
                self._on(setup.index, _prepared(effect))
            case effects.StopRing(index=index):
                return self._stop_ring(index)
            case effects.EnableRing(index=index):
                self._on(index, _prepared(effect))
            case effects.SetKick(index=index) | effects.SetCall(index=index):
                self._on(index, _prepared(effect))
            case effects.SetErr(index=index):
                self._on(index, _prepared(effect))
            case _:
                raise WorkerRefused(f"{type(effect).__name__} is not for workers")
        return None

    def settled(self, *, undone: bool) -> None:
        """The step's effects are committed, or (`undone`) rolled back after some were carried out.

        In the second case the workers are ahead of the state; fresh ones are brought to it.
        """
        self._stopped.clear()
        if undone:
            for seat in self.seats:
                self._replace(seat, "its last command was taken back")

    def detach(self) -> None:
        """The session is over: no worker keeps a ring, a mapping or what the driver chose."""
        self._broken.clear()
        self._config.reset()
        for seat in self.seats:
            if seat.worker is None:
                continue
            try:
                seat.worker.call(control.Detach())
            except (WorkerLost, WorkerRefused) as error:
                seat.bury(str(error))
                seat.spawn()

    def _on(
        self, queue: int, prepared: Prepared, *, timeout: float = COMMAND_DEADLINE, hold: int = -1
    ) -> int:
        """One command to the worker of `queue`, and again to its replacement if it is lost."""
        seat = self._seat_of[queue]
        command, fds = prepared
        try:
            return self._staffed(seat).call(command, fds, timeout=timeout)
        except WorkerLost as error:
            self._replace(seat, str(error), hold=hold)
            return self._staffed(seat).call(command, fds, timeout=timeout)

    def _everywhere(self, prepared: Prepared, undo: Prepared | None) -> None:
        """One command to every worker at once. If one refuses, `undo` goes to those that obeyed."""
        command, fds = prepared
        posted: list[tuple[Seat, int | None]] = []
        for seat in self.seats:
            try:
                posted.append((seat, self._staffed(seat).post(command, fds)))
            except WorkerLost:
                posted.append((seat, None))
        obeyed: list[Seat] = []
        refusal: WorkerRefused | WorkerLost | WorkerSetupError | None = None
        deadline = time.monotonic() + COMMAND_DEADLINE
        for seat, serial in posted:
            try:
                self._await(seat, prepared, serial, max(0.1, deadline - time.monotonic()))
                obeyed.append(seat)
            except (WorkerRefused, WorkerLost, WorkerSetupError) as error:
                refusal = error
        if refusal is None:
            return
        for seat in obeyed if undo is not None else ():
            assert undo is not None
            self._on(seat.queues[0], undo)
        raise refusal

    def _await(self, seat: Seat, prepared: Prepared, serial: int | None, timeout: float) -> None:
        cause = "took no message"
        if serial is not None:
            try:
                self._staffed(seat).wait(serial, timeout=timeout)
                return
            except WorkerLost as error:
                cause = str(error)
        self._replace(seat, cause)
        self._on(seat.queues[0], prepared)

    def _stop_ring(self, index: int) -> int:
        """Stop a ring; one that broke and whose worker is gone resumes, if ever, where the front-
        end says.
        """
        stop: Prepared = (control.StopRing(queue=index), ())
        broken = self._broken.pop(index, None)
        try:
            base = self._on(index, stop, timeout=STOP_DEADLINE, hold=index)
            self._stopped.add(index)
            return base
        except WorkerRefused:
            if broken is None:
                raise
            return next(
                (
                    effect.setup.base
                    for effect in self._replay((index,))
                    if isinstance(effect, effects.StartRing)
                ),
                0,
            )

    def _undo_memory(
        self, effect: effects.SetMemory | effects.AddRegion | effects.RemoveRegion
    ) -> Prepared:
        """The command that takes a memory change back: the table of the committed state."""
        if isinstance(effect, effects.AddRegion):
            return _prepared(effects.RemoveRegion(effect.region))
        regions: list[effects.Region] = []
        for old in self._replay(()):
            if isinstance(old, effects.SetMemory):
                regions.extend(old.regions)
            elif isinstance(old, effects.AddRegion):
                regions.append(old.region)
        return _prepared(effects.SetMemory(tuple(regions)))

    # Death and replacement.

    def due(self) -> float | None:
        """Seconds until a seat is to be filled again, or None if all are."""
        times = [seat.spawn_at for seat in self.seats if seat.worker is None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def tend(self) -> None:
        """Fill the seats whose back-off is over."""
        now = time.monotonic()
        for seat in self.seats:
            if seat.worker is None and seat.spawn_at <= now:
                self._fill(seat)

    def heard(self, seat: Seat) -> None:
        """The control channel of this seat is readable."""
        if seat.worker is None:
            return
        try:
            seat.worker.read()
        except WorkerLost as error:
            self.died(seat, str(error))

    def died(self, seat: Seat, cause: str = "died") -> None:
        """The worker of this seat ended by itself, or is to: log it and have another start."""
        self._bury(seat, cause)
        if seat.spawn_at <= time.monotonic():
            self._fill(seat)

    def _staffed(self, seat: Seat) -> WorkerProcess:
        if seat.worker is None:
            self._fill(seat)
        if seat.worker is None:
            raise WorkerRefused(f"{name_queues(seat.queues)}: no worker can be started")
        return seat.worker

    def _replace(self, seat: Seat, cause: str, *, hold: int = -1) -> None:
        self._bury(seat, cause)
        self._fill(seat, hold=hold)

    def _bury(self, seat: Seat, cause: str) -> None:
        if not seat.bury(cause):
            return
        if seat.last_signal == signal.SIGBUS:
            shrunk = self._shrunk_region(seat)
            if shrunk is not None:
                self._give_up(seat, f"guest memory was truncated: {shrunk}")

    def _fill(self, seat: Seat, *, hold: int = -1) -> None:
        """Start a worker for the seat and bring it to the session's state; `hold` names a ring not
        to let run.
        """
        try:
            seat.spawn()
        except WorkerSetupError as error:
            log.error("%s: %s", name_queues(seat.queues), error)
            seat.postpone()
            return
        worker = seat.worker
        assert worker is not None
        try:
            for command, fds in self._history(seat.queues, hold):
                worker.call(command, fds)
        except (WorkerLost, WorkerRefused) as error:
            self._bury(seat, f"could not resume: {error}")

    def _history(self, queues: tuple[int, ...], hold: int) -> Iterable[Prepared]:
        """What a fresh worker is told: the session's state, each ring at its live position."""
        for offset, data in self._config.written():
            yield control.WriteConfig(offset=offset, data=data), ()
        lost_memory = any(queue in self._broken for queue in queues)
        for effect in self._replay(queues):
            match effect:
                case effects.StartRing(setup=setup):
                    if setup.index in self._broken or setup.index in self._stopped:
                        continue
                    enabled = setup.enabled and setup.index != hold
                    yield _start(setup, base=None, enabled=enabled)
                case effects.SetMemory() | effects.AddRegion() if lost_memory:
                    intact = [r for r in _regions(effect) if _missing(r) is None]
                    for region in intact:
                        yield _prepared(effects.AddRegion(region))
                case _:
                    yield _prepared(effect)

    def _give_up(self, seat: Seat, cause: str) -> None:
        """Break the rings of a seat whose worker died of them, as it would have done itself."""
        for effect in self._replay(seat.queues):
            if isinstance(effect, effects.StartRing) and effect.setup.index not in self._broken:
                if effect.setup.err is not None:
                    effect.setup.err.notify()
                self._break(effect.setup.index, cause)

    def _shrunk_region(self, seat: Seat) -> str | None:
        for effect in self._replay(seat.queues):
            for region in _regions(effect):
                missing = _missing(region)
                if missing is not None:
                    return missing
        return None

    def _report(self, report: RingBroken | Logged) -> None:
        if isinstance(report, Logged):
            logging.getLogger("vuproc.device").log(report.level, "%s", report.text)
        else:
            self._break(report.queue, report.cause)

    def _break(self, queue: int, cause: str) -> None:
        if queue not in self._broken:
            self._broken[queue] = cause
            self._on_broken(queue, cause)


def _regions(effect: Effect) -> tuple[effects.Region, ...]:
    if isinstance(effect, effects.SetMemory):
        return effect.regions
    return (effect.region,) if isinstance(effect, effects.AddRegion) else ()


def _missing(region: effects.Region) -> str | None:
    """What the region's file lacks by now, in words; None if it is whole (or not a file with a
    size).
    """
    size, end = region.fd.size, region.mmap_offset + region.size
    if 0 < size >= end or (size == 0 and region.fd.kind is not FdKind.FILE):
        return None
    return f"region at {region.guest_addr:#x} needs {end:#x} bytes, its file has {size:#x}"


def _wire(region: effects.Region) -> control.Region:
    return control.Region(region.guest_addr, region.size, region.user_addr, region.mmap_offset)


def _present(*fds: Fd | None) -> tuple[Fd, ...]:
    return tuple(fd for fd in fds if fd is not None)


def _start(setup: effects.RingSetup, *, base: int | None, enabled: bool) -> Prepared:
    command = control.StartRing(
        queue=setup.index,
        size=setup.size,
        desc=setup.desc,
        avail=setup.avail,
        used=setup.used,
        base=base,
        enabled=enabled,
        kick=setup.kick is not None,
        call=setup.call is not None,
        err=setup.err is not None,
    )
    return command, _present(setup.kick, setup.call, setup.err)


def _prepared(effect: Effect) -> Prepared:
    """An effect as the command for one worker, with its descriptors."""
    match effect:
        case effects.SetFeatures(features=features):
            return control.SetFeatures(features=features), ()
        case effects.SetMemory(regions=regions):
            command = control.SetMemory(regions=tuple(_wire(region) for region in regions))
            return command, tuple(region.fd for region in regions)
        case effects.AddRegion(region=region):
            return control.AddRegion(region=_wire(region)), (region.fd,)
        case effects.RemoveRegion(region=region):
            return (
                control.RemoveRegion(
                    guest_addr=region.guest_addr, size=region.size, user_addr=region.user_addr
                ),
                (),
            )
        case effects.StartRing(setup=setup):
            return _start(setup, base=setup.base, enabled=setup.enabled)
        case effects.EnableRing(index=index, enabled=enabled):
            return control.EnableRing(queue=index, enabled=enabled), ()
        case effects.SetKick(index=index, fd=fd):
            return control.SetKick(queue=index), _present(fd)
        case effects.SetCall(index=index, fd=fd):
            return control.SetCall(queue=index), _present(fd)
        case effects.SetErr(index=index, fd=fd):
            return control.SetErr(queue=index), _present(fd)
        case effects.ResetDevice():
            return control.ResetDevice(), ()
        case _:
            raise WorkerRefused(f"{type(effect).__name__} is not for workers")
