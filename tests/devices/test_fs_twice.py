"""Each request of a file system is run twice, by two workers, as after a death: the second answers
as if it were the first.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.devices.fuse_driver import Fuse, FuseError, Inlined
from vuproc.devices.fs_parked import Parked
from vuproc.spec import fuse
from vuproc.spec.fuse import ROOT, Opcode, SetattrValid
from vuproc.testing.queue import Completion

pytestmark = pytest.mark.timeout(60)


class Twice(Inlined):
    """A guest of which each request is served by a worker that dies, and by the next one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=str(directory), readonly=False, xattrs=True)

    def do(self, queue: int, out: Sequence[bytes], in_: Sequence[int] = ()) -> Completion:
        self.inline.chain(out, in_)
        dead, device = self.inline.device, self.worker()
        dead.teardown()
        device.shared = dead.shared
        device.setup(0)
        self.inline.device = device
        return self.inline.chain(out, in_)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Fuse]:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("content")
    with Twice(tmp_path) as twice:
        yield Fuse(twice)


def refusal(number: int) -> Any:
    return pytest.raises(FuseError, match=f"^{errno.errorcode[number]}$")


def test_names_are_made_and_removed_once(mounted: Fuse, tmp_path: Path) -> None:
    folder = mounted.mkdir(ROOT, "new")
    node, handle = mounted.create(folder, "file", os.O_RDWR | os.O_EXCL)
    mounted.write(node, handle, b"content")
    assert mounted.link(node, folder, "other") == node
    mounted.symlink(folder, "link", "target")
    mounted.mknod(folder, "pipe", stat.S_IFIFO | 0o600)
    mounted.rename(folder, "link", folder, "other", fuse.RENAME_EXCHANGE)
    assert os.readlink(tmp_path / "new/other") == "target"
    mounted.rename(folder, "file", ROOT, "moved", fuse.RENAME_NOREPLACE)
    mounted.ask(Opcode.RENAME, ROOT, fuse.RENAME_IN.pack(newdir=folder) + b"moved\0back\0")
    mounted.unlink(folder, "back")
    assert mounted.read(node, handle) == b"content"
    for name in ("link", "other", "pipe"):
        mounted.unlink(folder, name)
    mounted.unlink(ROOT, "new", Opcode.RMDIR)
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]


def test_what_cannot_be_done_is_refused_the_second_time_too(mounted: Fuse) -> None:
    for make in (
        lambda: mounted.mkdir(ROOT, "there"),
        lambda: mounted.create(ROOT, "file", os.O_RDWR | os.O_EXCL),
        lambda: mounted.symlink(ROOT, "file", "x"),
        lambda: mounted.mknod(ROOT, "there", stat.S_IFREG),
        lambda: mounted.rename(ROOT, "file", ROOT, "there", fuse.RENAME_NOREPLACE),
        lambda: mounted.link(mounted.lookup("file"), ROOT, "there"),
    ):
        with refusal(errno.EEXIST):
            make()
    with refusal(errno.ENOENT):
        mounted.unlink(ROOT, "nothing")
    with refusal(errno.ENOENT):
        mounted.unlink(ROOT, "nothing", Opcode.RMDIR)
    for flags in (0, fuse.RENAME_EXCHANGE, fuse.RENAME_NOREPLACE):
        with refusal(errno.ENOENT):
            mounted.rename(ROOT, "nothing", ROOT, "something", flags)


def fails_once(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    done = getattr(where, name)

    def once(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(where, name, done)
        raise OSError(errno.EIO, "killed")

    monkeypatch.setattr(where, name, once)


def test_what_was_begun_and_not_done_is_done(
    mounted: Fuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_once(monkeypatch, os, "mkdir")
    mounted.mkdir(ROOT, "new")
    fails_once(monkeypatch, os, "rmdir")
    mounted.unlink(ROOT, "new", Opcode.RMDIR)
    fails_once(monkeypatch, os, "symlink")
    mounted.symlink(ROOT, "link", "x")
    fails_once(monkeypatch, os, "unlink")
    mounted.unlink(ROOT, "link")
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]


def test_an_opened_file_is_parked_once(mounted: Fuse, tmp_path: Path) -> None:
    node = mounted.lookup("file")
    handle = mounted.open(node, os.O_RDWR)
    listing = mounted.opendir(ROOT)
    mounted.unlink(ROOT, "file")
    assert mounted.read(node, handle) == b"content"
    body = fuse.READ_IN.pack(fh=listing, size=4096)
    assert b"there" in mounted.ask(Opcode.READDIR, ROOT, body)
    assert mounted.setattr(node, valid=SetattrValid.SIZE | SetattrValid.FH, fh=handle, size=3)
    mounted.release(node, handle)
    with refusal(errno.ESTALE):
        mounted.getattr(node)


def test_attributes_of_ones_own_are_set_and_removed_once(mounted: Fuse) -> None:
    node = mounted.lookup("file")
    body = fuse.SETXATTR_IN.pack(size=1, flags=os.XATTR_CREATE) + b"user.x\0v"
    mounted.ask(Opcode.SETXATTR, node, body, room=0)
    with refusal(errno.EEXIST):
        mounted.ask(Opcode.SETXATTR, node, body, room=0)
    mounted.ask(Opcode.REMOVEXATTR, node, b"user.x\0", room=0)
    with refusal(errno.ENODATA):
        mounted.ask(Opcode.REMOVEXATTR, node, b"user.x\0", room=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_without_rights_what_is_open_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who may not open a file again that nobody may write to, not its owner either."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, nobody, nobody)
        os.setegid(nobody)
        os.seteuid(nobody)
        try:
            with Twice(Path(folder)) as twice:
                mounted = Fuse(twice)
                mounted.user = 1000, 1000
                node, handle = mounted.create(ROOT, "file", mode=0o444)
                assert mounted.write(node, handle, b"content") == 7
                assert Path(folder, "file").stat().st_uid == nobody
                with refusal(errno.EACCES):
                    mounted.open(node, os.O_RDWR)
                with refusal(errno.EPERM):
                    mounted.setattr(node, valid=SetattrValid.UID, uid=1000)
                mounted.unlink(ROOT, "file")
                assert mounted.read(node, handle) == b"content"
                # A death after a file was made and before it was kept.
                fails_once(monkeypatch, Parked, "park")
                node, handle = mounted.create(ROOT, "second", mode=0o444)
                assert mounted.write(node, handle, b"content") == 7
                assert stat.S_IMODE(Path(folder, "second").stat().st_mode) == 0o444
        finally:
            os.seteuid(0)
            os.setegid(0)
