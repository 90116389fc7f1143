"""The poll set of a worker, and what a device watches with it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vuproc.workers.poller import Watcher


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    os.write(ends[1], b"x")
    yield ends
    for end in ends:
        os.close(end)


def test_a_descriptor_is_watched_once(watcher: Watcher, pipe: tuple[int, int]) -> None:
    watcher.add(pipe[0], lambda _mask: None)
    with pytest.raises(ValueError, match="watched already"):
        watcher.add(pipe[0], lambda _mask: None)


def test_c8_a_number_is_free_once_its_descriptor_was_closed(
    watcher: Watcher, pipe: tuple[int, int]
) -> None:
    called = []

    def old(_mask: int) -> None:
        called.append("old")

    def new(_mask: int) -> None:
        called.append("new")

    closed, other = os.pipe()
    watcher.add(closed, old)
    os.close(closed)
    os.close(other)
    os.dup2(pipe[0], closed)
    try:
        watcher.add(closed, new)
        watcher.remove(closed, old)  # whoever closed it is late
        assert watcher.poll(0.0) == 1
        watcher.remove(closed, new)
        assert watcher.poll(0.0) == 0
    finally:
        os.close(closed)
    assert called == ["new"]
