"""Looks at every state that driver, worker, death and control process can reach together.

Breadth first: the first violation found has the shortest history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from tests.model.access import Access, Choice, Private
from tests.model.config import Limits, put
from tests.model.guest import Guest
from tests.model.judge import Driver, Violation, Words
from tests.model.serving import Serving

T = TypeVar("T")


class Control(NamedTuple):
    """The control process. `base`: at which the front-end last started the ring.

    `stopping`: it has told the worker to stop and waits; `stops`, `deaths`: still to come; `kept`:
    the ring stopped with requests in its record; `heard`: a worker has said that the ring runs, and
    whoever comes after it is not told the base.
    """

    base: int
    stopping: bool
    stops: int
    deaths: int
    kept: bool = False
    heard: bool = False


class At(NamedTuple):
    """Where the worker is: in the program `of`, having loaded `got`, or `between` two programs.

    A program is a function of what it loads, so this is all there is to know of its insides.
    Neither: there is no worker, the ring is stopped.
    """

    of: Choice | None = None
    got: tuple[int, ...] = ()
    between: Private | None = None


class State(NamedTuple):
    """The numbers, in their pools, of memory, driver, worker and control process."""

    words: int
    driver: int
    worker: int
    control: int


class Step(NamedTuple):
    """One access of a worker, what it got, and memory and worker after it."""

    program: str
    access: Access
    got: int
    words: int
    worker: int


Next = tuple[str | Step, State]


class Result(NamedTuple):
    """`problem`: None if none of the `states` violates a rule; else `history` leads to it."""

    states: int
    problem: str | None = None
    history: tuple[str, ...] = ()


class Pool(Generic[T]):
    """Numbers that stand for values: a state of four numbers is cheap to keep and to look up."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Search:
    """One model, looked through."""

    def __init__(self, guest: Guest, worker: Serving) -> None:
        self.c: Limits = guest.c
        self.m = guest.m
        self.guest = guest
        self.worker = worker
        self.words: Pool[Words] = Pool()
        self.drivers: Pool[Driver] = Pool()
        self.workers: Pool[At] = Pool()
        self.controls: Pool[Control] = Pool()
        self._nobody = self.workers.number(At())
        self._accesses: dict[tuple[Choice, tuple[int, ...]], Access | Private] = {}
        self._steps: dict[tuple[int, int, bool], list[Step]] = {}
        self._unseen: dict[int, bool] = {}
        self._driver_moves: dict[tuple[int, int], list[tuple[str, int, int]]] = {}

    def run(self) -> Result:
        """Look until there is nothing new, or something that must not be."""
        first = self._first()
        came: dict[State, tuple[State, str | Step] | None] = {first: None}
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
                    return Result(len(came), str(violation), self._history(came, state, violation))
            level = following
        return Result(len(came))

    # ---- moves -----------------------------------------------------------------------------------

    def _first(self) -> State:
        words, driver, base = self.guest.begin()
        heard = not self.worker.needs_base
        control = Control(base, False, self.c.stops, self.c.crashes, heard=heard)
        return State(
            self.words.number(words),
            self.drivers.number(driver),
            self._started(base, words, fresh=True),
            self.controls.number(control),
        )

    def _successors(self, state: State) -> list[Next]:
        words, driver, worker, control = state
        now = self.controls.values[control]
        nexts: list[Next] = [
            (step, self._after(step, state)) for step in self._steps_of(words, worker, now.stopping)
        ]
        if not self._is_unseen(worker):
            for label, words_after, driver_after in self._moves_of(words, driver):
                nexts.append((label, State(words_after, driver_after, worker, control)))
            if worker == self._nobody:
                nexts.extend(self._starts(state, now))
            elif now.stops and not now.stopping and self._has_started(worker):
                asked = now._replace(stopping=True, stops=now.stops - 1, heard=True)
                after = state._replace(control=self.controls.number(asked))
                nexts.append(("control stops the ring", after))
        if not nexts and not self.guest.finished(self.drivers.values[driver]):
            raise Violation("nobody moves any more, and requests are outstanding")
        if worker != self._nobody and now.deaths:
            nexts.extend(self._deaths(state, now._replace(deaths=now.deaths - 1)))
        return nexts

    def _is_unseen(self, worker: int) -> bool:
        """Whether its next step is a store to the record that the judge does not ask about.

        Nobody sees it but a worker that comes after a death: what driver and control process do
        before it, they may as well do after it, or after the death.
        """
        known = self._unseen.get(worker)
        if known is None:
            at = self.workers.values[worker]
            access = self._next(at) if at.of is not None else None
            known = self._unseen[worker] = (
                isinstance(access, Access)
                and access.kind == "store"
                and access.at >= self.m.record
                and access.at not in self.m.notes
            )
        return known

    def _has_started(self, worker: int) -> bool:
        """Whether it may have said that the ring runs."""
        of = self.workers.values[worker].of
        return worker != self._nobody and (of is None or of.name != "start")

    def _starts(self, state: State, control: Control) -> Iterator[Next]:
        """The ring is stopped: it goes on where it was, or the driver makes a new one.

        Then all that is outstanding is given up. What was kept for the old ring is of no concern to
        the new one, and only the control process can tell.
        """
        words, driver = self.words.values[state.words], self.drivers.values[state.driver]
        worker = self._started(control.base, words, fresh=True)
        control = control._replace(heard=not self.worker.needs_base)
        going_on = self.controls.number(control._replace(kept=False))
        yield "control starts the ring", state._replace(worker=worker, control=going_on)
        if control.base:
            words, driver = self.guest.renewed(words, driver)
            if control.kept:
                words = put(words, self.m.version, 0)
            begun = control._replace(base=0, kept=False)
            yield (
                "driver resets the ring, control starts it",
                State(
                    self.words.number(words),
                    self.drivers.number(driver),
                    self._started(0, words, fresh=True),
                    self.controls.number(begun),
                ),
            )

    def _moves_of(self, words: int, driver: int) -> list[tuple[str, int, int]]:
        known = self._driver_moves.get((words, driver))
        if known is None:
            moves = self.guest.moves(self.words.values[words], self.drivers.values[driver])
            known = [
                (f"driver {label}", self.words.number(after), self.drivers.number(moved))
                for label, after, moved in moves
            ]
            self._driver_moves[words, driver] = known
        return known

    def _after(self, step: Step, state: State) -> State:
        """What a worker's step leads to, if the judge lets it pass."""
        access, driver = step.access, self.drivers.values[state.driver]
        if access.kind == "store" and access.at not in self.m.notes:
            return State(step.words, state.driver, step.worker, state.control)
        try:
            judged = self.guest.judge(access, driver, self.words.values[state.words])
        except Violation as violation:
            raise Violation(str(violation), self._describe(step)) from None
        number = state.driver if judged is driver else self.drivers.number(judged)
        if access.kind == "run":
            words = self.words.values[state.words]
            if self.guest.is_poison(driver, access.heads[0], words):
                control = self.controls.values[state.control]._replace(heard=True)
                return self._dead(state._replace(driver=number), control)
        if access.kind == "stopped":
            control = self.controls.values[state.control]
            kept = bool(access.heads)
            control = control._replace(base=access.value, stopping=False, kept=kept)
            return State(step.words, number, self._nobody, self.controls.number(control))
        return State(step.words, number, step.worker, state.control)

    def _deaths(self, state: State, control: Control) -> Iterator[Next]:
        """Whether the dead worker had started is found out after its death at the latest."""
        if not control.heard:
            yield "worker dies, and nobody has heard of it", self._dead(state, control)
        if control.heard or self._has_started(state.worker):
            yield "worker dies", self._dead(state, control._replace(heard=True))

    def _dead(self, state: State, control: Control) -> State:
        """Another worker takes the ring, and is told the base if none has started."""
        driver = self.drivers.number(self.guest.died(self.drivers.values[state.driver]))
        words = self.words.values[state.words]
        worker = self._started(control.base, words, fresh=not control.heard)
        return State(state.words, driver, worker, self.controls.number(control))

    def _started(self, base: int, words: Words, *, fresh: bool) -> int:
        return self.workers.number(self._settled(At(Choice("start", (base, fresh))), words))

    # ---- the worker ------------------------------------------------------------------------------

    def _steps_of(self, words: int, worker: int, stopping: bool) -> list[Step]:
        """What a worker may do next."""
        key = (words, worker, stopping)
        known = self._steps.get(key)
        if known is None:
            at, now = self.workers.values[worker], self.words.values[words]
            starts: Iterable[At] = [at] if at.of is not None else ()
            if at.between is not None:
                choices = self.worker.choices(at.between, stopping)
                starts = (self._settled(At(choice), now) for choice in choices)
            known = self._steps[key] = [step for start in starts for step in self._step(start, now)]
        return known

    def _step(self, at: At, words: Words) -> Iterator[Step]:
        """The next access of the program under way; none if it has to wait."""
        access = self._next(at)
        assert at.of is not None
        assert isinstance(access, Access)
        got = 0
        if access.kind == "load":
            got = words[access.at]
        elif access.kind == "store":
            words = put(words, access.at, access.value)
        elif access.kind == "wait":
            if not words[access.at]:
                return
            words = put(words, access.at, 0)
        after = self._settled(At(at.of, (*at.got, got)), words)
        yield Step(at.of.name, access, got, self.words.number(words), self.workers.number(after))

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
        known = self._accesses.get(key)
        if known is None:
            known = self._accesses[key] = self._replayed(at.of, at.got)
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

    # ---- words -----------------------------------------------------------------------------------

    def _history(
        self,
        came: dict[State, tuple[State, str | Step] | None],
        state: State,
        violation: Violation,
    ) -> tuple[str, ...]:
        labels = [violation.step] if violation.step else []
        before = came[state]
        while before is not None:
            state, label = before
            labels.append(label if isinstance(label, str) else self._describe(label))
            before = came[state]
        return tuple(reversed(labels))

    def _describe(self, step: Step) -> str:
        access, name = step.access, self.m.names[step.access.at]
        what = {
            "load": f"{name} is {self.m.show(access.at, step.got)}",
            "store": f"{name} := {self.m.show(access.at, access.value)}",
            "wait": f"takes {name}",
        }.get(access.kind, " ".join([access.kind, *map(str, access.heads), access.why]))
        return f"worker {step.program}: {what.strip()}"
