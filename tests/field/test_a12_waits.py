"""Peers that let vuproc wait: its master waits for them beside everything else."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kernel import has_uring
from tests.pool import scripted
from tests.pool.scripted import Scripted
from vuproc import Device, Options
from vuproc import Request as VirtioRequest
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.spec.vhost_user import FRONT_END
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve
from vuproc.vhost_user.wire import encode

BOUND_S = 20.0
_RUN = [sys.executable, "-m", "vuproc", "run"]
UNREAD = 200
"""Messages whose answers do not fit into a socket."""
AT_ONCE_S = 3.0
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


class PipeOptions(Options, kw_only=True):
    fifo: str


class Pipe(Device):
    """Request "read" is answered by the kernel once the pipe has something, "keep" by the next."""

    device_id = 42
    options_type = PipeOptions
    options: PipeOptions

    def setup(self, queue: int) -> None:
        self.kept: list[VirtioRequest] = []
        # For writing, too: so that it has no end.
        self.pipe = Fd(os.open(self.options.fifo, os.O_RDWR | os.O_CLOEXEC))

    def uring_files(self, queue: int) -> Sequence[Fd]:
        return (self.pipe,)

    def handle(self, request: VirtioRequest) -> None:
        for kept in self.kept:
            kept.finish()
        self.kept.clear()
        if request.read() == b"read":
            request.finish_preadv(self.pipe, 0, 4)
        else:
            request.defer()
            self.kept.append(request)

    def fail(self, request: VirtioRequest, error: BaseException) -> None:
        request.write(type(error).__name__.encode())
        request.finish()


@contextmanager
def piped(tmp_path: Path, stall_timeout: float = 0.4) -> Iterator[tuple[Served, int]]:
    """A `Pipe` of two queues, and the pipe."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Fd(os.open(fifo, os.O_RDWR | os.O_CLOEXEC)) as pipe:
        with serve(Pipe, fifo=fifo, queues=2, file={"stall_timeout": stall_timeout}) as served:
            yield served, pipe.fileno()


def test_a12_a_request_that_io_uring_does_not_finish_has_its_worker_replaced(
    tmp_path: Path,
) -> None:
    if not has_uring():
        return
    with piped(tmp_path) as (served, pipe), served.guest(queues=2) as guest:
        kept = guest.submit(1, [b"keep"], [4])
        token = guest.submit(0, [b"read"], [4])
        served.wait_for_line("io_uring has not finished 1 request for 0.4 s", BOUND_S)
        # An earlier attempt may take some of it in its last moments.
        os.write(pipe, b"done" * 8)
        assert guest.wait(token).content == b"done"
        # What a device keeps is no stall, however long that is.
        queues = ask(served.socket, Request("status"))["queues"]
        assert [queue["restarts"] for queue in queues] == [1, 0]
        guest.do(1, [b"read"], [4])
        guest.wait(kept)


def test_a12_what_io_uring_never_finishes_is_failed_after_three_workers(tmp_path: Path) -> None:
    if not has_uring():
        return
    with piped(tmp_path, stall_timeout=0.2) as (served, pipe), served.guest(queues=2) as guest:
        token = guest.submit(0, [b"read"], [32])
        assert guest.wait(token).content == b"RequestAbandoned"
        served.wait_for_line("3 workers died over it", BOUND_S)
        # The queue goes on.
        os.write(pipe, b"done" * 8)
        assert guest.do(0, [b"read"], [4]).content == b"done"


def test_a12_an_operator_may_hang_up_while_the_answer_waits(tmp_path: Path) -> None:
    """The verb waits for a worker, and the loop looks after operators meanwhile."""
    file, socket_path = tmp_path / "d.yaml", tmp_path / "d.sock"
    text = "socket: ./d.sock\nlog_level: {level}\nsandbox: {{files: [.]}}\n"
    text += "device: {{type: '{file}:Scripted'}}\n"
    file.write_text(text.format(level="info", file=scripted.__file__))
    began = tmp_path / "began"
    os.mkfifo(began)
    with serve(file) as served, served.guest() as guest:
        token = guest.submit(0, [f"tell {began} 0.5".encode()], [64])
        with open(began, "rb"):
            pass
        file.write_text(text.format(level="warning", file=scripted.__file__))
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as half,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone,
        ):
            half.connect(f"{socket_path}.admin")
            half.sendall(b'{"verb": "reload"}\n')
            half.shutdown(socket.SHUT_WR)
            gone.connect(f"{socket_path}.admin")
            gone.sendall(b'{"verb": "status"}\n')
            gone.close()
            assert ask(served.socket, Request("status"))["pid"] == served.pid
            assert b"log_level" in half.recv(4096)
        assert guest.wait(token).content[:4] == b"told"
