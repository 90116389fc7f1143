"""A device's exceptions and log lines say what they like: nothing ends, nothing vanishes."""

from __future__ import annotations

import pytest

from tests.field.talkative import SURROGATE, Talkative
from vuproc import texts
from vuproc.testing.errors import Refused, ServeFailed
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve

BOUND_S = 30.0
SHOWN_SURROGATE = SURROGATE.encode("unicode_escape").decode()


def say(guest: Guest, text: str) -> str:
    done = guest.do(0, [text.encode()], [64], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


def test_a7_no_text_of_a_device_ends_its_worker_or_vanishes(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Talkative)
    with served.guest() as guest:
        pid = say(guest, "pid")
        for verb in ("raise", "log"):
            for text in ("long", "surrogate", "forged"):
                say(guest, f"{verb} {text}")
        say(guest, "raise_nothing")
        say(guest, "misfit")
        with pytest.raises(Refused):
            guest.front_end.set_config(0, b"bad!")
        assert say(guest, "pid") == pid
    served.wait_for_line("disconnected")
    served.stop()
    log = "\n".join(served.lines)
    assert "ended" not in log
    assert log.count("(100013 characters)") == 2  # the failure, and the end of its traceback
    assert log.count("(100000 characters)") == 1
    assert f"ValueError: {SHOWN_SURROGATE}" in log
    assert f"INFO: {SHOWN_SURROGATE}" in log
    assert "Speechless: <exception str() failed>" in log
    assert "cannot be put together: TypeError: %d format" in log
    assert "refused SET_CONFIG: config_written: ValueError: xxx" in log
    assert r"ArithmeticError: gone\nvuproc device: ERROR: queue 0: broken\x1b[2J" in log
    assert not [line for line in served.lines if line.startswith("vuproc device: ERROR: queue 0")]
    assert max(len(line) for line in served.lines) < texts.LINE_BYTES + 100


def test_a7_a_device_that_cannot_be_set_up_says_why_whatever_it_says() -> None:
    with pytest.raises(ServeFailed) as caught:
        with serve(Talkative, setup_fails_with="surrogate"):
            pass
    last = caught.value.lines[-1]
    assert "ERROR: tests.field.talkative:Talkative: " in last
    assert f"RuntimeError: {SHOWN_SURROGATE}" in last
