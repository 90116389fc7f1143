"""Which signals end a master: those that ask for its end, and no other that somebody handles."""

from __future__ import annotations

import os
import signal

from vuproc.signals import ENDING, Requests, Signals


def test_a_signal_that_somebody_else_handles_is_not_for_us() -> None:
    heard: list[int] = []
    theirs = (signal.SIGWINCH, signal.SIGRTMIN + 5)
    before = {number: signal.getsignal(number) for number in (*theirs, *ENDING)}
    try:
        with Signals() as signals:
            requests = Requests(signals)
            for number in theirs:
                signal.signal(number, lambda number, _frame: heard.append(number))
                os.kill(os.getpid(), number)
            assert requests.hear(busy=False) is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.hear(busy=False) is signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == list(theirs)
