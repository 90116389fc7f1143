"""A reload asks the store of an object what is there, and nobody else waits for the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.devices.test_blk_overlay import content
from tests.devices.web_server import Web, serving
from vuproc.inquiries import Answer, Inquiry, Unanswered, answered_by, ask
from vuproc.testing.block import Block
from vuproc.testing.errors import ServeFailed
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

SIZE = 1 << 20
OBJECT = content(0, SIZE)
BOUND_S = 60.0


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(OBJECT) as web:
        yield web


@pytest.fixture
def file(tmp_path: Path, web: Web) -> Path:
    path = tmp_path / "disk.yaml"
    write(path, web)
    return path


def write(path: Path, web: Web, **options: object) -> None:
    device = {"type": "blk", "url": web.url, **options}
    path.write_text(json.dumps({"socket": "./disk.sock", "stall_timeout": 0.5, "device": device}))


def all_is_served(served: Served, guest: Guest) -> None:
    """A message of the front-end, a worker's death, and the status."""
    assert len(guest.config(size=8)) == 8
    killed = served.kill_worker(0)
    served.wait_worker(0, other_than=killed)
    # Not of the object, whose server would be asked.
    Block(guest).write(8, b"x" * 4096)
    assert Block(guest).read(8, 4096) == b"x" * 4096
    assert served.status().connected


@contextmanager
def waiting(served: Served, file: Path, web: Web, serial: str) -> Iterator[Future[list[str]]]:
    """A reload that waits for the store, until the end."""
    web.described.clear()
    before = web.heads
    write(file, web, serial=serial)
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(served.reload)
        try:
            web.wait(lambda: web.heads > before)
            yield reload
            assert not reload.done() or reload.exception() is not None
        finally:
            web.described.set()


def test_the_device_is_served_while_a_reload_waits_for_the_store(file: Path, web: Web) -> None:
    with serve(file) as served, served.guest() as guest:
        with waiting(served, file, web, "second") as reload:
            all_is_served(served, guest)
            with pytest.raises(ServeFailed, match="a reload is under way"):
                served.reload()
        assert any("serial" in line for line in reload.result(BOUND_S))
        served.wait_for_line("every worker is new")
        assert Block(guest).get_id() == "second"
        with waiting(served, file, web, "third") as reload:
            web.tag = '"another"'
        assert any("another object is at" in line for line in reload.result(BOUND_S))
        # Neither an end in order nor whoever asked is held up by it.
        with waiting(served, file, web, "fourth") as reload:
            assert served.stop() == 0
            with pytest.raises(ServeFailed):
                reload.result(BOUND_S)


def test_what_is_not_known_is_asked_first() -> None:
    inquiry = Inquiry(("false",), 5.0)
    answers: dict[tuple[str, ...], Answer] = {}
    with answered_by(answers):
        with pytest.raises(Unanswered) as unanswered:
            ask(inquiry)
        assert unanswered.value.inquiry == inquiry
        answers[inquiry.command] = Answer(0, b"known")
        assert ask(inquiry).output == b"known"
    assert ask(inquiry).code == 1
    assert ask(Inquiry(("sleep", "60"), 0.05)).code is None
