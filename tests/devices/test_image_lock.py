"""Locks on an image: which claims exclude each other, and how long they last."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vuproc.devices import image_lock
from vuproc.devices.blk_image import LOCK_PATIENCE_S, Image
from vuproc.devices.image_lock import (
    READER,
    WRITER,
    ImageLocked,
    LocksUnavailable,
    check,
    lock,
    lock_within,
    unlock,
)
from vuproc.errors import FileRefused
from vuproc.fd import Fd

BOUND_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(bytes(4096))
    return made


@pytest.fixture
def pair(path: Path) -> Iterator[tuple[Fd, Fd]]:
    with Fd(os.open(path, os.O_RDWR)) as first, Fd(os.open(path, os.O_RDWR)) as second:
        yield first, second


def bytes_locked(fd: Fd) -> set[int]:
    """By anybody but this open file; what QEMU's tools look at."""
    probe = image_lock._held_by_others
    return {byte for byte in range(90, 220) if probe(fd, byte)}


def test_b7_bytes_are_those_of_a_disk_of_qemu(pair: tuple[Fd, Fd]) -> None:
    ours, other = pair
    lock(ours, WRITER)
    assert bytes_locked(other) == {100, 101, 201}
    unlock(ours)
    assert bytes_locked(other) == set()
    lock(ours, READER)
    assert bytes_locked(other) == {100, 201}


def test_b7_readers_share_and_writers_do_not(pair: tuple[Fd, Fd]) -> None:
    first, second = pair
    lock(first, READER)
    lock(second, READER)
    unlock(second)
    with pytest.raises(ImageLocked, match="lets nobody else write to it"):
        lock(second, WRITER)
    # One that was refused keeps nothing.
    assert bytes_locked(first) == set()
    unlock(first)
    lock(second, WRITER)
    for claim in (READER, WRITER):
        with pytest.raises(ImageLocked):
            check(first, claim)
        with pytest.raises(ImageLocked):
            lock(first, claim)
    with pytest.raises(ImageLocked, match="has it open for writing"):
        lock(first, READER)


def test_b7_lock_of_another_kind_is_in_the_way(pair: tuple[Fd, Fd]) -> None:
    ours, other = pair
    whole = image_lock.FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
    fcntl.fcntl(other.fileno(), fcntl.F_OFD_SETLK, whole)
    with pytest.raises(ImageLocked, match="has locked it"):
        lock(ours, READER)


def test_b7_lock_lasts_as_long_as_any_descriptor_of_the_open_file(pair: tuple[Fd, Fd]) -> None:
    ours, other = pair
    lock(ours, WRITER)
    lock(ours, WRITER)
    with ours.dup() as copy:
        ours.close()
        with pytest.raises(ImageLocked):
            lock(other, WRITER)
        check(copy, WRITER)
    lock(other, WRITER)


def test_b7_lock_that_is_about_to_end_is_waited_for(pair: tuple[Fd, Fd]) -> None:
    ours, other = pair
    lock(other, WRITER)
    end = threading.Timer(2 * image_lock.LOOK_S, lambda: unlock(other))
    end.start()
    lock_within(ours, WRITER, BOUND_S)
    end.join()
    with pytest.raises(ImageLocked):
        lock_within(other, WRITER, 0.0)


@pytest.mark.parametrize("number", sorted(image_lock._UNAVAILABLE))
def test_b7_file_system_without_locks_is_served_and_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with Fd(os.open(path, os.O_RDWR)) as fd:
        with pytest.raises(LocksUnavailable):
            lock(fd, WRITER)
        unlock(fd)
    with caplog.at_level(logging.WARNING, "vuproc.device"):
        files = image(path).open()
    assert f"image {path}: no locks here ({os.strerror(number).lower()})" in caplog.text
    assert image(path).adopt(files)
    close(files)


def test_b7_other_errors_are_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> bytes:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(OSError, match="I/O error"):
        image(path).open()


# The image of a disk.


def image(path: Path, **options: Any) -> Image:
    return Image(str(path), **{"readonly": False, "direct": False, "locking": True, **options})


def close(files: dict[str, Fd]) -> None:
    for fd in files.values():
        fd.close()


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ({}, {}, False),
        ({}, {"readonly": True}, False),
        ({"readonly": True}, {}, False),
        ({"readonly": True}, {"readonly": True}, True),
        ({}, {"locking": False}, True),
        ({"locking": False}, {}, True),
        ({"locking": False}, {"locking": False}, True),
    ],
)
def test_b7_which_disks_may_share_an_image(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: dict[str, bool],
    second: dict[str, bool],
    shared: bool,
) -> None:
    monkeypatch.setattr("vuproc.devices.blk_image.LOCK_PATIENCE_S", 0.0)
    files = image(path, **first).open()
    if shared:
        close(image(path, **second).open())
    else:
        with pytest.raises(FileRefused) as refused:
            image(path, **second).open()
        assert refused.value.option == "image"
        assert str(path) in refused.value.reason and "locking: off" in refused.value.reason
    close(files)
    close(image(path, **second).open())


def test_b7_start_says_what_it_waits_for(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = image(path).open()
    end = threading.Timer(2 * image_lock.LOOK_S, lambda: close(files))
    with caplog.at_level(logging.INFO, "vuproc.device"):
        end.start()
        close(image(path).open())
    end.join()
    assert f"waiting {LOCK_PATIENCE_S:g} s for its end" in caplog.text


def test_b7_device_that_is_checked_may_be_running(path: Path) -> None:
    files = image(path).open()
    assert list(image(path).problems(512)) == []
    assert list(image(path).replaced(files)) == []
    close(files)


def test_b7_files_of_a_predecessor_keep_their_lock(path: Path, pair: tuple[Fd, Fd]) -> None:
    probe, _ = pair
    files = image(path).open()
    assert image(path).adopt(files)
    assert bytes_locked(probe) == {100, 101, 201}
    # As the options say by now.
    assert image(path, locking=False).adopt(files)
    assert bytes_locked(probe) == set()
    assert image(path).adopt(files)
    assert bytes_locked(probe) == {100, 101, 201}
    # Opened otherwise: by the next, whom this one's lock must not keep from it.
    assert not image(path, readonly=True).adopt(files)
    close(image(path, readonly=True).open())
    close(files)


def test_b7_predecessors_image_that_cannot_be_locked_is_served_and_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, others = (image(path, locking=False).open() for _ in range(2))
    assert image(path).adopt(files)
    assert image(path).adopt(others)
    assert "another program has it open" in caplog.text
    close(files)
    close(others)


def test_b7_lock_of_a_predecessor_survives_somebody_who_looks_at_it(
    path: Path, pair: tuple[Fd, Fd]
) -> None:
    """QEMU's tools take their bytes for a moment before they look at those of others."""
    probe, tool = pair
    files = image(path).open()
    with pytest.raises(ImageLocked):
        lock(tool, WRITER, keep=True)
    assert image(path).adopt(files)
    unlock(tool)
    assert bytes_locked(probe) == {100, 101, 201}
    close(files)


def test_b7_reload_is_refused_what_its_restart_would_be(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(4096))
    ours, taken = image(path).open(), image(other).open()
    # By another path, by another file at the path, and by another claim on the same file.
    with pytest.raises(FileRefused, match=r"other\.raw: another program"):
        list(image(other).replaced(ours))
    os.rename(other, path)
    with pytest.raises(FileRefused, match=r"disk\.raw: another program"):
        list(image(path).replaced(ours))
    reader = image(path, readonly=True)
    close(taken)
    readers = [reader.open() for _ in range(2)]
    with pytest.raises(FileRefused, match="lets nobody else write"):
        list(image(path).replaced(readers[0]))
    for files in (*readers, ours):
        close(files)
