"""Looks at every state that driver, worker, death and control process can reach together.

Breadth first: the first violation found has the shortest history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.config import Config, Memory, put
from tests.model.driver import Driver, Guest, Violation, Words
from tests.model.worker import Access, Choice, Private, Worker


class Control(NamedTuple):
    """The control process. `base`: at which the front-end last started the ring.

    `stopping`: it has told the worker to stop and waits; `stops`, `deaths`: still to come.
    """

    base: int
    stopping: bool
    stops: int
    deaths: int


class At(NamedTuple):
    """Where the worker is: in the program `of`, having loaded `got`, or `between` two programs.

    A program is a function of what it loads, so this is all there is to know of its insides.
    """

    of: Choice | None = None
    got: tuple[int, ...] = ()
    between: Private | None = None


class State(NamedTuple):
    """All of it. No worker: the ring is stopped."""

    words: Words
    driver: Driver
    worker: At | None
    control: Control


Next = tuple[str, State]


class Result(NamedTuple):
    """`problem`: None if none of the `states` violates a rule; else `history` leads to it."""

    states: int
    problem: str | None = None
    history: tuple[str, ...] = ()


class Search:
    """One model, looked through."""

    def __init__(self, config: Config, worker: type[Worker] = Worker) -> None:
        self.c = config
        self.m = Memory(config)
        self.guest = Guest(config, self.m)
        self.worker = worker(config, self.m)
        self._known: dict[tuple[Choice, tuple[int, ...]], Access | Private] = {}

    def run(self) -> Result:
        """Look until there is nothing new, or something that must not be."""
        words = self.m.initial(self.c)
        control = Control(self.c.origin, False, self.c.stops, self.c.crashes)
        first = State(words, self.guest.initial(), self._started(self.c.origin, words), control)
        came: dict[State, tuple[State, str] | None] = {first: None}
        level = [first]
        while level:
            following: list[State] = []
            for state in level:
                try:
                    for label, after in self._successors(state):
                        if after not in came:
                            came[after] = (state, label)
                            following.append(after)
                except Violation as violation:
                    return Result(len(came), str(violation), _history(came, state, violation.step))
            level = following
        return Result(len(came))

    # ---- moves -----------------------------------------------------------------------------------

    def _successors(self, state: State) -> list[Next]:
        worker, control = state.worker, state.control
        nexts = list(self._worker_moves(state, worker)) if worker else []
        if not (worker and self._is_unseen(state, worker)):
            nexts.extend(
                (f"driver {label}", State(words, driver, worker, control))
                for label, words, driver in self.guest.moves(state.words, state.driver)
            )
            nexts.extend(self._control_moves(state))
        if not nexts and not self.guest.finished(state.driver):
            raise Violation("nobody moves any more, and requests are outstanding")
        if worker and control.deaths:
            nexts.append(("worker dies", self._dead(state, control.deaths - 1)))
        return nexts

    def _is_unseen(self, state: State, worker: At) -> bool:
        """Whether the worker's next step means nothing to the others, nor theirs to it.

        It makes no difference, then, whether they move before it or after it: after will do. So are
        steps in the record, which only workers know, and all that concerns entries and requests
        which the driver will not look at before the worker has moved an index.
        """
        if worker.of is None:
            return False
        access = self._next(worker)
        assert isinstance(access, Access)
        slots = self.guest.exposed(state.words, state.driver)
        if access.kind == "store":
            return access.at >= self.m.record or (
                access.at in self.m.used_entries and access.at not in slots
            )
        if access.kind == "load":
            return access.at == self.m.used_idx or access.at in self.m.avail_entries
        return access.kind in ("run", "skip", "live") and not any(
            state.words[slot] in access.heads for slot in slots
        )

    def _control_moves(self, state: State) -> Iterator[Next]:
        control = state.control
        if state.worker is None:
            started = self._started(control.base, state.words)
            yield "control starts the ring", state._replace(worker=started)
        elif control.stops and not control.stopping:
            asked = control._replace(stopping=True, stops=control.stops - 1)
            yield "control stops the ring", state._replace(control=asked)

    def _dead(self, state: State, deaths: int) -> State:
        """Another worker takes the ring, and is told that it is not the first."""
        driver = self.guest.died(state.driver)
        control = state.control._replace(deaths=deaths)
        return State(state.words, driver, self._started(None, state.words), control)

    def _started(self, base: int | None, words: Words) -> At:
        return self._settled(At(Choice("start", (base,))), words)

    # ---- the worker ------------------------------------------------------------------------------

    def _worker_moves(self, state: State, at: At) -> Iterator[Next]:
        if at.between is None:
            yield from self._step(state, at)
            return
        for choice in self.worker.choices(at.between, state.control.stopping):
            yield from self._step(state, self._settled(At(choice), state.words))

    def _step(self, state: State, at: At) -> Iterator[Next]:
        """The next access of the program under way, and what it leads to."""
        words, driver, _, control = state
        access = self._next(at)
        assert at.of is not None
        assert isinstance(access, Access)
        label = f"worker {at.of.name}: {self._describe(access, words)}"
        got = 0
        if access.kind == "load":
            got = words[access.at]
        elif access.kind == "store":
            words = put(words, access.at, access.value)
        elif access.kind == "wait":
            if not words[access.at]:
                return
            words = put(words, access.at, 0)
        elif access.kind == "run" and self._is_poison(driver, access.heads[0]):
            yield f"{label} and dies of it", self._dead(state, control.deaths)
            return
        try:
            driver = self.guest.judge(access, driver, got)
        except Violation as violation:
            raise Violation(str(violation), label) from None
        if access.kind == "stopped":
            control = control._replace(base=access.value, stopping=False)
            yield label, State(words, driver, None, control)
            return
        worker = self._settled(At(at.of, (*at.got, got)), words)
        yield label, State(words, driver, worker, control)

    def _is_poison(self, driver: Driver, head: int) -> bool:
        request = driver.held[head]
        return request is not None and request.number == self.c.poison

    def _settled(self, at: At, words: Words) -> At:
        """Past the loads from the record, which nobody else changes, and past a program's end."""
        while True:
            access = self._next(at)
            if isinstance(access, Private):
                return At(between=access)
            if access.kind != "load" or access.at < self.m.record:
                return at
            at = At(at.of, (*at.got, words[access.at]))

    def _next(self, at: At) -> Access | Private:
        """The next access of a program, or what it returned: it is run anew up to there, once."""
        assert at.of is not None
        key = (at.of, at.got)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._replayed(at.of, at.got)
        return known

    def _replayed(self, of: Choice, got: tuple[int, ...]) -> Access | Private:
        program = self.worker.program(of)
        try:
            access = next(program)
            for value in got:
                access = program.send(value)
        except StopIteration as end:
            assert isinstance(end.value, Private)
            return end.value
        return access

    def _describe(self, access: Access, words: Words) -> str:
        if access.kind in ("load", "wait"):
            return f"{access.kind}s {self.m.names[access.at]} = {words[access.at]}"
        if access.kind == "store":
            return f"{self.m.names[access.at]} := {access.value}"
        return " ".join([access.kind, *map(str, access.heads), access.why]).strip()


def _history(
    came: dict[State, tuple[State, str] | None], state: State, last: str
) -> tuple[str, ...]:
    labels = [last] if last else []
    step = came[state]
    while step is not None:
        state, label = step
        labels.append(label)
        step = came[state]
    return tuple(reversed(labels))
