"""What is asked of something far away: by a program, since that may take its time.

Most who ask have nothing else to do and wait, and whoever waits for long says so (`Manner`). The
master has: it asks `answered_by` what is known so far, which interrupts whatever wants to know
more. It has a program run, attends to everything else meanwhile, and begins once more when there is
an answer.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct, field

Command = tuple[str, ...]

AWAY = os.EX_TEMPFAIL
"""Exit code of a program that got no answer: there may be one later. Any other is one, or none that
will ever be.
"""
NOTICE_S = 1.0
"""Seconds of waiting of which nobody needs to hear."""
AGAIN_S = 0.5
"""Seconds between two questions to somebody who is not there."""


class Answer(Struct, frozen=True):
    """What a program has said. `code` None: it had not ended in time."""

    code: int | None
    output: bytes = b""
    error: bytes = b""

    @property
    def away(self) -> bool:
        """Nobody was there, or nobody said anything."""
        return self.code in (None, AWAY)


class Inquiry(Struct, frozen=True):
    """A program that is to be run in `/`, for at most so many seconds. `about`: of what it asks,
    for people.
    """

    command: Command
    seconds: float
    about: str = ""

    def reason_of(self, answer: Answer) -> str:
        """Why there is none, in the program's own words."""
        if answer.code is None:
            return f"no answer within {self.seconds:.0f} s"
        said = answer.error.decode("utf-8", "backslashreplace").strip().splitlines()
        return said[-1] if said else f"exit code {answer.code}"


class Manner(Struct):
    """How this process waits for answers. `notice` is called once for each inquiry that takes long.
    `patient`: who is not there is asked again, until the inquiry's time is over. `keeps`: an answer
    is `known` to those who ask later, too, so that a device is served by what its file was checked
    by; it is forgotten once that is served. `without` counts those that had no answer in the end.
    """

    notice: Callable[[Inquiry], None] | None = None
    patient: bool = False
    keeps: bool = False
    without: int = 0
    known: dict[Command, Answer] = field(default_factory=dict)


class Unanswered(BaseException):
    """There is no answer to `inquiry` yet. It passes by those that handle an author's mistakes, and
    whoever catches it begins from the beginning: nothing may have been changed by then.
    """

    def __init__(self, inquiry: Inquiry) -> None:
        super().__init__(inquiry)
        self.inquiry = inquiry


manner = Manner()


@contextmanager
def for_a_start(*, patient: bool) -> Iterator[None]:
    """What is asked in here is for a device that is to be served by it: answers are kept."""
    manner.patient, manner.keeps = patient, True
    try:
        yield
    finally:
        manner.patient = manner.keeps = False


_answers: Mapping[Command, Answer] | None = None


@contextmanager
def answered_by(answers: Mapping[Command, Answer]) -> Iterator[None]:
    """Nothing waits in here: what is not among `answers` is Unanswered."""
    global _answers
    before, _answers = _answers, answers
    try:
        yield
    finally:
        _answers = before


def ask(inquiry: Inquiry) -> Answer:
    """The answer: of the program, which is waited for, or one that is known. Raises Unanswered and,
    if there is no such program, OSError.
    """
    if _answers is None:
        return manner.known.get(inquiry.command) or _Wait(inquiry).answer()
    answer = _answers.get(inquiry.command)
    if answer is None:
        raise Unanswered(inquiry)
    return answer


class _Wait:
    """One wait for the answer to one inquiry."""

    def __init__(self, inquiry: Inquiry) -> None:
        self._inquiry = inquiry
        now = time.monotonic()
        self._until = now + inquiry.seconds
        self._notice_at = now + NOTICE_S

    def answer(self) -> Answer:
        """As soon as there is one."""
        answer = self._run()
        while manner.patient and answer.away and self._left() > AGAIN_S:
            time.sleep(AGAIN_S)
            self._note()
            answer = self._run()
        if answer.away:
            # Whoever starts us again and again has a limit of starts in a time.
            time.sleep(self._left() if manner.patient else 0.0)
            manner.without += 1
        elif manner.keeps:
            manner.known[self._inquiry.command] = answer
        return answer

    def _run(self) -> Answer:
        with subprocess.Popen(
            self._inquiry.command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                return self._communicate(process)
            except subprocess.TimeoutExpired:
                return Answer(None)
            finally:
                if process.returncode is None:
                    process.kill()

    def _communicate(self, process: subprocess.Popen[bytes]) -> Answer:
        try:
            quiet_s = max(0.0, self._notice_at - time.monotonic())
            said = process.communicate(timeout=min(quiet_s, self._left()))
        except subprocess.TimeoutExpired:
            self._note()
            said = process.communicate(timeout=self._left())
        return Answer(process.returncode, *said)

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _note(self) -> None:
        """Say that it takes long, if it does, once."""
        if manner.notice is not None and time.monotonic() >= self._notice_at:
            manner.notice(self._inquiry)
            self._notice_at = self._until + NOTICE_S
