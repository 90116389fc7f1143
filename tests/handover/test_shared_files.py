"""Shared files over a master's death: taken over as they are, or made anew and said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

import pytest

from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.handover.fd_store import SESSION, SHARED, FdStore
from vuproc.handover.sd_notify import Notifier
from vuproc.handover.shared_files import SharedFiles


def memory(size: int) -> Fd:
    fd = Fd(os.memfd_create("table", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    return fd


class Table(Device):
    device_id = 45
    size = 4096

    def shared_files(self) -> dict[str, Fd]:
        return {"table": memory(self.size)}


class Stubborn(Table):
    """Goes on with whatever there is."""

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        return True

    def shared_files(self) -> dict[str, Fd]:
        raise AssertionError("not asked")


def fd_store(**left: Fd) -> FdStore:
    return FdStore(Notifier(None), {name.replace("_", "."): (fd,) for name, fd in left.items()})


def inode(fd: Fd) -> int:
    return os.fstat(fd.fileno()).st_ino


def test_first_of_all_has_them_made() -> None:
    device, kept = Table(), fd_store()
    with ExitStack() as stack:
        files = SharedFiles(device, kept, stack)
        assert device.shared == files.fds
        assert list(kept.held()) == [f"{SHARED}table"]
        files.drop()
        assert kept.held() == {}
        files.keep()
        assert list(kept.held()) == [f"{SHARED}table"]
    assert files.fds["table"].closed


@pytest.mark.parametrize(("device", "size"), [(Table(), 4096), (Stubborn(), 1)])
def test_a5_files_of_a_predecessor_are_gone_on_with(device: Device, size: int) -> None:
    left = memory(size)
    number = inode(left)
    kept = fd_store(shared_table=left, session_connection=memory(1))
    with ExitStack() as stack:
        SharedFiles(device, kept, stack)
        assert inode(device.shared["table"]) == number
        assert kept.names(SESSION) == [f"{SESSION}connection"]
    kept.close()


@pytest.mark.parametrize("left", [{"shared_table": 8192}, {"shared_other": 4096}, {}])
def test_a5_session_ends_with_the_files_that_it_was_about(
    left: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    found = {name: memory(size) for name, size in left.items()}
    device, kept = Table(), fd_store(session_connection=memory(1), **found)
    with ExitStack() as stack:
        SharedFiles(device, kept, stack)
        assert device.shared["table"].size == device.size
        assert all(fd.closed for fd in found.values())
        assert kept.names(SESSION) == [] and kept.names(SHARED) == []
    assert "the session of the last master is lost" in caplog.text


def test_session_of_a_device_without_files_goes_on() -> None:
    class Plain(Device):
        device_id = 45

    kept = fd_store(session_connection=memory(1))
    with ExitStack() as stack:
        assert SharedFiles(Plain(), kept, stack).fds == {}
    assert kept.names(SESSION) == [f"{SESSION}connection"]
    kept.close()


def test_file_object_of_an_author_is_taken_over(tmp_path: os.PathLike[str]) -> None:
    class Author(Device):
        device_id = 45

        def shared_files(self) -> dict[str, Fd]:
            return {"file": open(os.path.join(tmp_path, "f"), "w+b")}  # type: ignore[dict-item]

    device = Author()
    with ExitStack() as stack:
        SharedFiles(device, fd_store(), stack)
        assert isinstance(device.shared["file"], Fd) and not device.shared["file"].closed
