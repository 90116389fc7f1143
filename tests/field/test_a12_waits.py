"""Peers that let vuproc wait: its master waits for them beside everything else."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.workers.scripted import Scripted
from vuproc.admin import Request, ask
from vuproc.spec.vhost_user import FRONT_END
from vuproc.testing.driver import Guest
from vuproc.testing.serve import Served, serve
from vuproc.wire import encode

BOUND_S = 20.0
_RUN = [sys.executable, "-m", "vuproc", "run"]
UNREAD = 200
"""Messages whose answers do not fit into a socket."""
AT_ONCE_S = 1.0
"""Seconds in which an answer came at once, on a busy machine."""


def status(path: Path) -> dict[str, object]:
    """`vuproc status`, which must come at once."""
    began = time.monotonic()
    answer = ask(path, Request("status"))
    assert time.monotonic() - began < AT_ONCE_S
    return answer


def test_a12_a_front_end_that_does_not_read_its_answers_keeps_nobody_waiting() -> None:
    with serve(Scripted) as served, served.guest() as guest:
        row = FRONT_END.named("GET_FEATURES")
        for _ in range(UNREAD):
            guest.front_end.send(encode(row.number))
        for _ in range(20):
            assert status(served.socket)["connected"]
        # The driver is served meanwhile, and no answer is lost.
        assert guest.do(0, [b"echo hello"], [64]).content == b"hello"
        offered = {guest.front_end.receive().payload for _ in range(UNREAD)}
        assert len(offered) == 1
        assert guest.stop_queue(0) == 1


@contextmanager
def full_listener(path: Path) -> Iterator[socket.socket]:
    """A VMM that listens and does not accept, and whose backlog is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(path))
            yield listening


def test_a12_a_vmm_whose_backlog_is_full_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "vmm.sock"
    file = tmp_path / "device.yaml"
    device = {"type": "blk", "ram": "1MiB"}
    file.write_text(json.dumps({"socket": {"path": str(path), "mode": "client"}, "device": device}))
    with full_listener(path) as listening:
        served = Served([*_RUN, str(file)], path)
        try:
            served.wait_for_line("waiting for the VMM to listen (its backlog is full)")
            for _ in range(20):
                assert not status(path)["connected"]
        except BaseException:
            served.end()
            raise
        listening.settimeout(BOUND_S)
        listening.accept()[0].close()
        with Guest(listening.accept()[0]) as guest:
            assert guest.do(0, [bytes(16)], [512, 1]).content[-1:] == b"\0"
    assert served.stop() == 0
