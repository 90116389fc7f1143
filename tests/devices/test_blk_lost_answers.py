"""Requests whose answer is lost, and others without a proper one: what is in the store all the
same is not taken for absent, nor for somebody else's. By Google's store, whose stand-in does so.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from tests.devices import google_store
from tests.devices.google_store import LOST, Google
from tests.devices.test_blk_overlay import content
from tests.devices.test_blk_write_back import SIZE, disk_of, url_of, vuproc, write_back
from tests.guest.load import in_long_form
from vuproc.devices.object_store import RETRIES
from vuproc.testing.block import Block
from vuproc.testing.serve import serve

pytestmark = pytest.mark.timeout(120)

OTHER_ANSWERS = [(429, 1), (LOST, RETRIES + 1), (429, RETRIES + 1)]
LOST_TO_THE_LAST = {"PUT": [LOST] * (RETRIES + 1)}
KNOWN = [{"PUT": [LOST]}, *in_long_form(LOST_TO_THE_LAST, {"PUT": [429, LOST, 403]})]
UNKNOWN = [{"PUT": [LOST, 403], "GET": [403]}, *in_long_form({**LOST_TO_THE_LAST, "GET": [403]})]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    with google_store.running() as server, google_store.gated(server) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "golden.raw"
    path.write_bytes(content(0, SIZE))
    return path


@pytest.mark.parametrize("answers", KNOWN)
def test_an_image_is_pushed_though_the_answer_is_lost(
    store: Google, raw: Path, answers: dict[str, list[int]]
) -> None:
    store.server.answers = answers = deepcopy(answers)  # they are used up
    vuproc("image", "push", str(raw), url_of(store), "--piece-size", "64K")
    assert answers["PUT"] == []
    assert store.image("disk") == raw.read_bytes()


@pytest.mark.parametrize("answers", UNKNOWN)
def test_pieces_stay_if_it_is_not_known_whether_there_is_an_image_of_them(
    store: Google, raw: Path, answers: dict[str, list[int]]
) -> None:
    store.server.answers = answers = deepcopy(answers)  # they are used up
    push = ("image", "push", str(raw), url_of(store), "--piece-size", "64K")
    message = vuproc(*push, code=1)
    assert "it is not known whether the image is there" in message
    assert answers == {"PUT": [], "GET": []}
    (folder,) = {name.split("/")[1] for name in store.names()} - {"manifest.json"}
    assert f"what was put stays, below disk/{folder}/" in message
    assert store.image("disk") == raw.read_bytes()


def test_pieces_of_no_image_are_deleted(store: Google, raw: Path) -> None:
    store.server.answers = {"PUT": [403]}
    message = vuproc("image", "push", str(raw), url_of(store), "--piece-size", "64K", code=1)
    assert "403" in message
    assert store.names() == []


@pytest.mark.parametrize(("answer", "count"), [(LOST, 1), *in_long_form(*OTHER_ANSWERS)])
def test_a_version_without_a_proper_answer_is_no_conflict(
    store: Google, raw: Path, tmp_path: Path, answer: int, count: int
) -> None:
    """It is tried again by the library, then by us."""
    vuproc("image", "push", str(raw), url_of(store), "--piece-size", "64K")
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        Block(guest).write(0, b"1" * 512)
        store.server.answers = {"PUT": [answer] * count}
        write_back(served)
        assert store.server.answers == {"PUT": []}
        if count > RETRIES:
            served.wait_for_line("the store answers again")
    assert store.image("disk") == b"1" * 512 + raw.read_bytes()[512:]
