"""Discarding and zeroing where the kernel or the file system does not help."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.devices.blk_storage import ZERO_CHUNK, Storage, image_size, new_memory
from vuproc.fd import Fd

SIZE = 4 * ZERO_CHUNK


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\xff" * SIZE)
    opened = Storage(Fd(os.open(path, os.O_RDWR)))
    yield opened
    opened.close()


def content(storage: Storage) -> bytes:
    return os.pread(storage.fileno(), SIZE, 0)


@pytest.mark.parametrize("unmap", [False, True])
def test_zeros_are_written_where_the_file_system_cannot_zero(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, unmap: bool
) -> None:
    monkeypatch.setattr(storage, "_fallocate", lambda *arguments: False)
    length = 2 * ZERO_CHUNK + 512
    storage.write_zeroes(512, length, unmap=unmap)
    expected = b"\xff" * 512 + bytes(length)
    assert content(storage) == expected + b"\xff" * (SIZE - len(expected))


def test_zeros_are_written_where_theblock_device_cannot_zero(storage: Storage) -> None:
    # The ioctl on a regular file says ENOTTY.
    storage.block_device = True
    storage.write_zeroes(0, 4096, unmap=True)
    assert content(storage) == bytes(4096) + b"\xff" * (SIZE - 4096)


def test_discard_keeps_the_data_where_theblock_device_cannot_discard(storage: Storage) -> None:
    storage.block_device = True
    storage.discard(0, SIZE)
    assert content(storage) == b"\xff" * SIZE


def test_discard_keeps_the_data_where_the_file_system_has_no_holes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_fallocate", lambda *arguments: False)
    storage.discard(0, SIZE)
    assert content(storage) == b"\xff" * SIZE


def test_zeroing_a_read_only_image_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    storage = Storage(Fd(os.open(path, os.O_RDONLY)))
    with pytest.raises(OSError) as caught:
        storage.write_zeroes(0, 512, unmap=True)
    assert caught.value.errno == errno.EBADF
    storage.close()


def test_memory_cannot_be_resized() -> None:
    memory = new_memory(8192)
    seals = fcntl.fcntl(memory.fileno(), fcntl.F_GET_SEALS)
    assert seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fileno(), 4096)
    memory.close()


def test_size_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1536))
    assert image_size(str(path)) == 1536


def test_pipe_is_no_image_and_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a pipe, not a raw file"):
        image_size(str(path))
