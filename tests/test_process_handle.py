"""A handle of a process, used and let go by several threads at once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from vuproc.program.process_handle import ProcessHandle

BOUND_S = 20.0


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_it_signals_until_it_is_let_go(child: subprocess.Popen[bytes]) -> None:
    handle = ProcessHandle(child.pid)
    handle.signal(signal.SIGTERM)
    assert child.wait(BOUND_S) == -signal.SIGTERM
    handle.signal(signal.SIGTERM)  # it has ended, which is no error
    handle.close()
    handle.signal(signal.SIGTERM)
    handle.close()


def test_it_is_not_let_go_while_a_signal_is_on_its_way(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = ProcessHandle(child.pid)
    closer = threading.Thread(target=handle.close)
    send = signal.pidfd_send_signal

    def sent_late(number: int, which: int) -> None:
        closer.start()
        closer.join(0.2)  # it would be through by then
        os.fstat(number)
        send(number, which)

    monkeypatch.setattr(signal, "pidfd_send_signal", sent_late)
    handle.signal(signal.SIGTERM)
    closer.join(BOUND_S)
    assert child.wait(BOUND_S) == -signal.SIGTERM
    with pytest.raises(ValueError):
        handle.fileno()


def test_a_signal_handler_may_use_it_in_the_middle_of_a_use(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = ProcessHandle(child.pid)
    send = signal.pidfd_send_signal

    def interrupted(number: int, which: int) -> None:
        monkeypatch.setattr(signal, "pidfd_send_signal", send)
        handle.signal(signal.SIGKILL)
        send(number, which)

    monkeypatch.setattr(signal, "pidfd_send_signal", interrupted)
    handle.signal(signal.SIGTERM)
    assert child.wait(BOUND_S) == -signal.SIGKILL
    handle.close()
