"""Masters that are forks of the tests' template are what fresh ones are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.handover.surrounded import WORD, Surrounded
from vuproc.testing import Served, ServeFailed, serve

BOUND_S = 20.0


def is_forked(served: Served) -> bool:
    return b"forked_masters" in Path(f"/proc/{served.pid}/cmdline").read_bytes()


def said(served: Served) -> dict[str, Any]:
    with served.guest() as guest:
        answer: dict[str, Any] = json.loads(guest.do(in_=[1 << 16], timeout_s=BOUND_S).content)
        answer["path"].pop()  # the folder of the device file
        return answer


@contextlib.contextmanager
def other_surroundings() -> Iterator[None]:
    """In which a template's fork would not be what it is to be."""
    umask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(umask)


def test_it_has_what_a_fresh_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORD, "heard")
    with serve(Surrounded) as served:
        assert is_forked(served) and os.getpgid(served.pid) == served.pid
        one = said(served)
    with other_surroundings(), serve(Surrounded) as served:
        assert not is_forked(served) and os.getpgid(served.pid) == served.pid
        assert said(served) == one
    assert one["word"] == "heard" and one["folder"] == "/"


def test_its_end_is_told() -> None:
    with pytest.raises(ServeFailed, match="-9"):
        with serve(Surrounded) as served:
            assert is_forked(served)
            os.kill(served.pid, signal.SIGKILL)
            assert served.wait() == -signal.SIGKILL
    with serve(Surrounded) as served:
        assert served.stop() == 0  # and it has removed what the other had to leave


def test_an_upgrade_makes_it_a_fresh_one() -> None:
    with serve(Surrounded) as served:
        assert is_forked(served)
        command = [sys.executable, "-m", "vuproc", "upgrade", str(served.socket)]
        subprocess.run(command, capture_output=True, timeout=BOUND_S, check=True)
        assert not is_forked(served)
        assert said(served)["folder"] == "/"
