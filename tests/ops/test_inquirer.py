"""Programs that are asked while a loop goes on."""

from __future__ import annotations

import selectors
import sys
import time
from collections.abc import Iterator

import pytest

from vuproc.inquiries import Answer, Inquiry
from vuproc.ops.inquirer import Inquirer

BOUND_S = 30.0
LONG_S = 600.0


class Loop:
    """The master's, as far as it concerns an inquirer."""

    def __init__(self) -> None:
        self.selector = selectors.PollSelector()
        self.inquirer = Inquirer(self.selector)
        self.answers: list[Answer] = []

    def ask(self, code: str, seconds: float = BOUND_S) -> None:
        self.inquirer.begin(Inquiry((sys.executable, "-c", code), seconds), self.answers.append)

    def turn_until_answered(self) -> Answer:
        deadline = time.monotonic() + BOUND_S
        while not self.answers:
            assert time.monotonic() < deadline
            for key, _ in self.selector.select(self.inquirer.due()):
                key.data()
            self.inquirer.tend()
        return self.answers.pop()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.inquirer.close()
    loop.selector.close()


def test_what_a_program_says(loop: Loop) -> None:
    loop.ask("import sys; print('a' * 100000); print('b', file=sys.stderr); sys.exit(3)")
    answer = loop.turn_until_answered()
    assert not loop.inquirer.busy
    assert answer == Answer(3, b"a" * 100000 + b"\n", b"b\n")


def test_one_that_takes_too_long_is_killed(loop: Loop) -> None:
    loop.ask(f"import time; time.sleep({LONG_S})", seconds=0.05)
    assert loop.turn_until_answered().code is None


def test_one_that_is_not_there(loop: Loop) -> None:
    with pytest.raises(OSError):
        loop.inquirer.begin(Inquiry(("/nonexistent",), BOUND_S), loop.answers.append)
    assert not loop.inquirer.busy


def test_the_end_does_not_wait_for_one(loop: Loop) -> None:
    loop.ask(f"import time; time.sleep({LONG_S})")
    loop.inquirer.close()
    assert not loop.answers and not loop.inquirer.busy
