"""The admin socket: one line in, one line out, and nobody can hold the master up there."""

from __future__ import annotations

import select
import selectors
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.ops.loop import BOUND_S, ServerLoop
from vuproc import texts
from vuproc.listener import Listener
from vuproc.ops.admin import (
    CLIENTS,
    PERMISSIONS,
    AdminError,
    AdminServer,
    Later,
    Request,
    Verb,
    ask,
    line_of,
)
from vuproc.unix_path import ADMIN_SUFFIX

HOSTILE = "\ud800 \x1b[2J" + "x" * 100_000
"""As an exception of a device's code may say."""


class Loop(ServerLoop):
    """Of an admin socket with three verbs."""

    def __init__(self, path: Path) -> None:
        selector = selectors.DefaultSelector()
        listener = Listener(Path(f"{path}{ADMIN_SUFFIX}"), PERMISSIONS)
        verbs: dict[str, Verb] = {"echo": self.echo, "fail": self.fail, "much": self.much}
        verbs |= {"later": self.later, "tell": self.tell}
        self.answer = Later()
        super().__init__(AdminServer(listener, selector, verbs), selector)

    def echo(self, request: Request) -> dict[str, Any]:
        return {"queue": request.queue}

    def fail(self, request: Request) -> dict[str, Any]:
        raise AdminError("not today" if request.queue is None else HOSTILE)

    def later(self, _request: Request) -> Later:
        self.answer = Later()
        return self.answer

    def tell(self, request: Request) -> dict[str, Any]:
        said = request.queue is None
        self.answer.tell(AdminError("after all not") if said else {"queue": request.queue})
        return {}

    def much(self, request: Request) -> dict[str, Any]:
        return {"lines": ["x" * texts.LINE_BYTES] * 400, "hostile": [HOSTILE]}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    loop = Loop(tmp_path / "s")
    yield tmp_path / "s"
    loop.close()


def talk(path: Path, data: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the server ends the conversation."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(BOUND_S)
        client.connect(f"{path}{ADMIN_SUFFIX}")
        client.sendall(data)
        answer = b""
        while more := client.recv(4096):
            answer += more
        return answer


def test_a_verb_is_answered(path: Path) -> None:
    assert ask(path, Request("echo", 3)) == {"queue": 3}


def test_a_verb_that_fails_says_why(path: Path) -> None:
    with pytest.raises(AdminError, match="not today"):
        ask(path, Request("fail"))


def test_an_unknown_verb_is_named(path: Path) -> None:
    with pytest.raises(AdminError, match="unknown verb 'dance'"):
        ask(path, Request("dance"))


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"verb": 3}\n', b"{}\n"])
def test_what_is_no_request_gets_an_error(path: Path, line: bytes) -> None:
    assert msgspec.json.decode(talk(path, line))["ok"] is False


def test_a7_a_line_that_is_not_utf_8_gets_an_error(path: Path) -> None:
    assert msgspec.json.decode(talk(path, b'{"verb": "\xff\xfe"}\n'))["ok"] is False
    assert ask(path, Request("echo", 3)) == {"queue": 3}


def test_a7_what_a_device_says_is_made_fit_for_the_answer(path: Path) -> None:
    with pytest.raises(AdminError) as caught:
        ask(path, Request("fail", 1))
    assert str(caught.value).startswith(r"\ud800 \x1b[2Jxxx")
    assert len(str(caught.value)) <= texts.LINE_BYTES


def test_a7_an_answer_that_is_longer_than_the_sockets_queue_arrives(path: Path) -> None:
    answer = ask(path, Request("much"))
    assert answer["lines"] == ["x" * texts.LINE_BYTES] * 400
    assert answer["hostile"][0].startswith(r"\ud800")


def test_a_client_that_does_not_take_its_answer_is_turned_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuproc.ops.admin.CLIENT_DEADLINE_S", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(f"{path}{ADMIN_SUFFIX}")
        client.sendall(b'{"verb": "much"}\n')
        ended = select.poll()
        ended.register(client, select.POLLHUP)
        assert ended.poll(BOUND_S * 1000), "it is waited for"


def test_a_line_that_never_ends_is_cut_off(path: Path) -> None:
    with pytest.raises(OSError):  # closed with our bytes unread
        while True:
            talk(path, b"x" * 100_000)
    assert ask(path, Request("echo")) == {"queue": None}


def test_a_silent_client_is_turned_away(path: Path) -> None:
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(BOUND_S)
        client.connect(f"{path}{ADMIN_SUFFIX}")
        assert client.recv(1) == b""
    assert time.monotonic() - begun < BOUND_S


def test_many_silent_clients_do_not_keep_others_out(path: Path) -> None:
    silent = []
    for _ in range(CLIENTS + 2):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(f"{path}{ADMIN_SUFFIX}")
        silent.append(client)
    assert ask(path, Request("echo", 1)) == {"queue": 1}
    for client in silent:
        client.close()


def test_the_socket_is_its_owners_alone(path: Path) -> None:
    assert stat.S_IMODE(Path(f"{path}{ADMIN_SUFFIX}").stat().st_mode) == 0o600


def test_nobody_there_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match=r"nothing\.admin"):
        ask(tmp_path / "nothing", Request("status"))


@contextmanager
def asking(path: Path) -> Iterator[socket.socket]:
    """A client that has asked for what comes later."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(BOUND_S)
        client.connect(f"{path}{ADMIN_SUFFIX}")
        client.sendall(b'{"verb": "later"}\n')
        # Its request is read before that of the next one.
        assert ask(path, Request("echo", 1)) == {"queue": 1}
        yield client


def test_an_answer_may_come_later(path: Path) -> None:
    with asking(path) as client:
        assert ask(path, Request("tell", 7)) == {}
        assert msgspec.json.decode(line_of(client)) == {"ok": True, "queue": 7}
    with asking(path) as client:
        assert ask(path, Request("tell")) == {}
        assert msgspec.json.decode(line_of(client)) == {"ok": False, "error": "after all not"}


def test_a_client_that_has_gone_by_then_is_no_matter(path: Path) -> None:
    with asking(path):
        pass
    assert ask(path, Request("tell", 7)) == {}
    assert ask(path, Request("echo", 2)) == {"queue": 2}


def test_who_waits_at_the_end_is_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "s")
    with asking(tmp_path / "s") as client:
        loop.close()
        assert msgspec.json.decode(line_of(client))["error"] == "the device ends"
