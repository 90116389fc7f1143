"""What is asked of something far away: by a program, since that may take its time.

Most who ask have nothing else to do and wait. The master has: it asks `answered_by` what is known
so far, which interrupts whatever wants to know more. It has a program run, attends to everything
else meanwhile, and begins once more when there is an answer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Command = tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a program has said. `code` None: it had not ended in time."""

    code: int | None
    output: bytes = b""
    error: bytes = b""


@dataclass(frozen=True)
class Inquiry:
    """A program that is to be run in `/`, for at most so many seconds."""

    command: Command
    seconds: float


class Unanswered(BaseException):
    """There is no answer to `inquiry` yet. It passes by those that handle an author's mistakes, and
    whoever catches it begins from the beginning: nothing may have been changed by then.
    """

    def __init__(self, inquiry: Inquiry) -> None:
        super().__init__(inquiry)
        self.inquiry = inquiry


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
        return _run(inquiry)
    answer = _answers.get(inquiry.command)
    if answer is None:
        raise Unanswered(inquiry)
    return answer


def _run(inquiry: Inquiry) -> Answer:
    try:
        done = subprocess.run(
            inquiry.command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=inquiry.seconds,
        )
    except subprocess.TimeoutExpired:
        return Answer(None)
    return Answer(done.returncode, done.stdout, done.stderr)
