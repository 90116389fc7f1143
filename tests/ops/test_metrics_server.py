"""Scrapes by HTTP: what is asked well gets a whole page, and nobody holds the loop up."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ops.loop import BOUND_S, ServerLoop
from vuproc.listener import Listener
from vuproc.ops import metrics_server
from vuproc.ops.http_request import HEAD_BYTES, Wants, parse
from vuproc.ops.metric_table import CONTENT_TYPE
from vuproc.ops.metrics_server import CLIENTS, MetricsServer

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
PIECES = 400
PIECE = "x" * 1000 + "\n"


class Loop(ServerLoop):
    """Of a server whose pages have `PIECES` pieces, each of which takes `piece_s`."""

    def __init__(self, path: Path, piece_s: float = 0.0) -> None:
        self.path = path
        self.pages = 0
        self._piece_s = piece_s
        listener = Listener(path, 0o600)
        listener.open()
        selector = selectors.PollSelector()
        super().__init__(MetricsServer(listener, selector, self.pieces), selector)

    def pieces(self) -> Iterator[str]:
        self.pages += 1
        for _ in range(PIECES):
            time.sleep(self._piece_s)
            yield PIECE
        yield "# EOF\n"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    loop = Loop(tmp_path / "m")
    yield loop
    loop.close()


def client(loop: Loop) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(loop.path))  # waits for room in the backlog, which a timeout would not
    sock.settimeout(BOUND_S)
    return sock


def rest(sock: socket.socket) -> bytes:
    answer = b""
    while more := sock.recv(65536):
        answer += more
    return answer


def talk(loop: Loop, data: bytes) -> bytes:
    with client(loop) as sock:
        sock.sendall(data)
        return rest(sock)


def page_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    return body.decode()


def test_a_page_is_whole(loop: Loop) -> None:
    answer = talk(loop, GET)
    assert page_of(answer) == PIECE * PIECES + "# EOF\n"
    assert f"Content-Type: {CONTENT_TYPE}\r\n".encode() in answer


def test_head_has_no_body(loop: Loop) -> None:
    answer = talk(loop, GET.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/../../etc/passwd HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"GET /metrics HTTP/9.9", b"400"),
        (b"GET  /metrics HTTP/1.1", b"400"),
        (b"\x16\x03\x01\x02\x00", b"400"),
        (b"", b"400"),
    ],
)
def test_what_is_no_scrape_is_refused(loop: Loop, request_line: bytes, status: bytes) -> None:
    assert talk(loop, request_line + b"\r\n\r\n").startswith(b"HTTP/1.1 " + status)
    assert loop.pages == 0


def test_a_head_that_never_ends_is_refused() -> None:
    assert parse(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES) is Wants.TOO_LONG
    assert parse(b"GET /metrics HTTP/1.1\r\nX: ") is None


def test_a_client_that_floods_is_cut_off(loop: Loop) -> None:
    with client(loop) as sock:
        with pytest.raises(OSError):
            while True:
                sock.sendall(b"x" * 100_000)
    assert page_of(talk(loop, GET))


def test_a_request_may_come_in_pieces(loop: Loop) -> None:
    with client(loop) as sock:
        for at in range(len(GET)):
            sock.sendall(GET[at : at + 1])
        assert page_of(rest(sock))


@pytest.mark.parametrize("deadline", ["CLIENT_DEADLINE_S"])
def test_a_silent_client_is_turned_away(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    monkeypatch.setattr(metrics_server, deadline, 0.2)
    with client(loop) as sock:
        assert sock.recv(1) == b""


def test_a_client_that_does_not_take_its_page_is_turned_away(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CLIENT_DEADLINE_S", 0.2)
    with client(loop) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.sendall(GET)
        deadline = time.monotonic() + BOUND_S
        while not loop.pages or loop.server._clients:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(rest(sock)) < PIECES * len(PIECE)


def test_silent_clients_in_every_place_cost_a_scrape_a_second(loop: Loop) -> None:
    silent = [client(loop) for _ in range(CLIENTS)]
    try:
        assert page_of(talk(loop, GET))
    finally:
        for sock in silent:
            sock.close()


def test_clients_that_ask_at_the_same_time_share_a_page(loop: Loop) -> None:
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(talk(loop, GET))) for _ in range(3 * CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(answers) == 3 * CLIENTS
    assert len({page_of(answer) for answer in answers}) == 1
    assert loop.pages < 3 * CLIENTS


def test_a_client_that_leaves_takes_nobodys_page_with_it(loop: Loop) -> None:
    for _ in range(20):
        with client(loop) as leaver, client(loop) as stayer:
            leaver.sendall(GET)
            stayer.sendall(GET)
            leaver.close()
            assert page_of(rest(stayer))


def test_whoever_comes_and_goes_leaves_nothing(loop: Loop) -> None:
    for _ in range(200):
        with client(loop) as sock:
            sock.sendall(GET[:10])
    assert page_of(talk(loop, GET))
    assert len(loop.server._clients) == 0


def test_a_long_page_is_made_in_many_turns(tmp_path: Path) -> None:
    """Other descriptors have their turn meanwhile."""
    loop = Loop(tmp_path / "m", piece_s=0.002)
    turns: list[float] = []
    mine, other = socket.socketpair()
    try:
        echo: Callable[[], None] = lambda: turns.append(float(len(mine.recv(1))))  # noqa: E731
        loop.selector.register(mine, selectors.EVENT_READ, echo)
        with client(loop) as sock:
            sock.sendall(GET)
            sock.settimeout(0.0)
            deadline = time.monotonic() + BOUND_S
            while time.monotonic() < deadline:
                try:
                    if sock.recv(1):
                        break
                except BlockingIOError:
                    pass
                before = len(turns)
                other.send(b"x")
                while len(turns) == before and time.monotonic() < deadline:
                    time.sleep(0.0005)
            sock.settimeout(BOUND_S)
            rest(sock)
        assert len(turns) > 20
        loop.selector.unregister(mine)
    finally:
        loop.close()
        mine.close()
        other.close()
