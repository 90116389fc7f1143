"""The file system with the built-in driver: a directory of the host over FUSE."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.fuse_driver import HIPRIO, DyingFs, Fuse, FuseError, Inlined
from vuproc import Fd
from vuproc.devices import fs_host
from vuproc.devices.fs import Fs, FsOptions
from vuproc.devices.fs_host import HostEntry
from vuproc.devices.fs_session import OFFERED
from vuproc.spec import fuse
from vuproc.spec.fuse import ROOT, Opcode, SetattrValid
from vuproc.testing import Served, serve
from vuproc.testing.errors import ServeFailed

pytestmark = pytest.mark.timeout(120)

BOUND_S = 30.0
FIRST, SECOND, THIRD = 1, 2, 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `served`."""
    root = tmp_path_factory.mktemp("fs") / "tree"
    root.mkdir()
    return root


@pytest.fixture(scope="module")
def served(shared: Path) -> Iterator[Served]:
    """Serves `tree`, to be written to, on three queues."""
    options = {"type": "fs", "tag": "share", "directory": str(shared), "readonly": False}
    options |= {"request_queues": 3, "xattrs": True}
    with serve(options, arguments=["--supervised"]) as served:
        yield served


@pytest.fixture
def tree(shared: Path) -> Path:
    """What is shared: a file, a directory with a file, symlinks, a pipe; and a file outside."""
    for left in [*shared.iterdir(), *shared.parent.glob("tree-*"), *shared.parent.glob("gone")]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    os.chmod(shared, 0o755)
    os.chown(shared, os.geteuid(), os.getegid())
    (shared / "below").mkdir()
    (shared / "hello").write_bytes(b"hello, world")
    (shared / "below" / "deep").write_bytes(bytes(range(256)) * 40)
    (shared / "away").symlink_to("../outside")
    (shared / "up").symlink_to("..")
    os.mkfifo(shared / "pipe")
    (shared.parent / "outside").write_text("secret")
    return shared


def refusal(number: int) -> Any:
    return pytest.raises(FuseError, match=f"^{errno.errorcode[number]}$")


@pytest.mark.parametrize("packed", [False, True])
def test_a_tree_is_read(served: Served, tree: Path, packed: bool) -> None:
    with served.guest(queues=2, packed=packed) as guest:
        assert fuse.CONFIG.unpack(guest.config()) == {
            "tag": b"share".ljust(36, b"\0"),
            "num_request_queues": 3,
        }
        mounted = Fuse(guest)
        assert (mounted.options["major"], mounted.options["minor"]) == (7, 36)
        assert mounted.options["flags"] == OFFERED
        for path in ("hello", "below/deep"):
            of, there = mounted.getattr(mounted.lookup(path)), (tree / path).stat()
            assert (of["ino"], of["size"], of["mode"]) == (
                there.st_ino,
                there.st_size,
                there.st_mode,
            )
            assert of["mtime"] * 10**9 + of["mtimensec"] == there.st_mtime_ns
            assert mounted.content(path) == (tree / path).read_bytes()
        assert mounted.ask(Opcode.READLINK, mounted.lookup("away")) == b"../outside"
        assert fuse.STATFS_OUT.unpack(mounted.ask(Opcode.STATFS, ROOT))["namelen"] == 255
        handle = mounted.open(node := mounted.lookup("hello"))
        assert mounted.read(node, handle, 7, 5) == b"world"
        assert mounted.read(node, handle, 100) == b""
        with refusal(errno.ENOENT):
            mounted.lookup("nothing")
        mounted.ask(Opcode.DESTROY, 0, room=0)


@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_is_listed_in_parts(served: Served, tree: Path, plus: bool) -> None:
    names = {f"file number {n} {'x' * (n % 90)}" for n in range(150)}
    for name in names:
        (tree / "below" / name).touch()
    with served.guest(queues=2) as guest:
        mounted = Fuse(guest)
        node = mounted.lookup("below")
        listed = mounted.listed(node, 2048, plus=plus)
        assert listed.keys() == names | {".", "..", "deep"}
        if plus:
            assert listed["."] == listed[".."] == 0
            assert listed["deep"] == mounted.lookup("deep", node)
            assert mounted.getattr(listed["deep"])["size"] == 256 * 40


def test_a_name_that_is_too_long_for_linux_is_listed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, there = b"\xe4" * 700, fs_host.read_directory

    def with_it(directory: Fd, offset: int, most: int) -> list[HostEntry]:
        return [HostEntry(name, 9, 1, 8)] if not offset else there(directory, offset - 1, most)

    monkeypatch.setattr(fs_host, "read_directory", with_it)
    with Inlined(directory=str(tree)) as guest:
        mounted = Fuse(guest)
        handle = mounted.opendir(ROOT)
        body = fuse.READ_IN.pack(fh=handle, size=1024)
        data = mounted.ask(Opcode.READDIRPLUS, ROOT, body)
        assert fuse.ENTRY_OUT.unpack(data)["nodeid"] == 0 and name in data


def test_what_the_guest_makes_is_there(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        folder = mounted.mkdir(ROOT, "new", 0o711)
        node, handle = mounted.create(folder, "file", os.O_RDWR | os.O_EXCL, 0o600)
        with refusal(errno.EEXIST):
            mounted.create(folder, "file", os.O_RDWR | os.O_EXCL)
        assert mounted.write(node, handle, b"x" * 5000, 3) == 5000
        mounted.ask(Opcode.FSYNC, node, fuse.FSYNC_IN.pack(fh=handle), room=0)
        mounted.ask(Opcode.FLUSH, node, bytes(24), room=0)
        new = tree / "new"
        assert (new / "file").read_bytes() == bytes(3) + b"x" * 5000
        assert stat.S_IMODE(new.stat().st_mode) == 0o711
        assert stat.S_IMODE((new / "file").stat().st_mode) == 0o600
        assert mounted.setattr(node, valid=SetattrValid.SIZE, size=10)["size"] == 10
        of = mounted.setattr(
            node,
            valid=SetattrValid.MODE | SetattrValid.MTIME,
            mode=0o100640,
            mtime=(1 << 64) - 2,
            mtimensec=5,
        )
        assert (of["mode"], of["mtimensec"]) == (0o100640, 5)
        assert (new / "file").stat().st_mtime_ns == -2 * 10**9 + 5
        assert of["mtime"] == (1 << 64) - 2
        now = mounted.setattr(node, valid=SetattrValid.ATIME | SetattrValid.ATIME_NOW)
        assert now["atime"] > 1 << 30 and now["mtime"] == of["mtime"]
        body = fuse.FALLOCATE_IN.pack(fh=handle, offset=2, length=6, mode=3)
        mounted.ask(Opcode.FALLOCATE, node, body, room=0)
        assert (new / "file").read_bytes() == bytes(8) + b"xx"
        assert mounted.link(node, ROOT, "second") == node
        mounted.symlink(folder, "link", "/etc/passwd")
        mounted.mknod(folder, "pipe", stat.S_IFIFO | 0o600)
        assert (tree / "second").samefile(new / "file")
        assert os.readlink(new / "link") == "/etc/passwd"
        assert stat.S_ISFIFO((new / "pipe").stat().st_mode)
        mounted.rename(folder, "file", ROOT, "moved")
        assert not (new / "file").exists()
        mounted.rename(ROOT, "moved", folder, "link", fuse.RENAME_EXCHANGE)
        assert os.readlink(tree / "moved") == "/etc/passwd"
        with refusal(errno.EEXIST):
            mounted.rename(ROOT, "moved", folder, "link", fuse.RENAME_NOREPLACE)
        with refusal(errno.ENOTEMPTY):
            mounted.unlink(ROOT, "new", Opcode.RMDIR)
        for name in ("link", "pipe"):
            mounted.unlink(folder, name)
        mounted.unlink(ROOT, "new", Opcode.RMDIR)
        assert not new.exists()
        # One name is left, and the file is still open.
        assert mounted.getattr(node, handle)["nlink"] == 1
        mounted.release(node, handle)


def test_holes_copies_and_attributes_of_ones_own(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        node = mounted.lookup("hello")
        handle = mounted.open(node, os.O_RDWR)
        copy, copy_handle = mounted.create(ROOT, "copy")
        body = fuse.COPY_FILE_RANGE_IN.pack(
            fh_in=handle, off_in=7, nodeid_out=copy, fh_out=copy_handle, off_out=1, len=5
        )
        mounted.ask(Opcode.COPY_FILE_RANGE, node, body)
        assert (tree / "copy").read_bytes() == b"\0world"
        body = fuse.LSEEK_IN.pack(fh=handle, offset=0, whence=os.SEEK_HOLE)
        assert fuse.LSEEK_OUT.unpack(mounted.ask(Opcode.LSEEK, node, body))["offset"] == 12
        value, name = b"v" * 100, b"user.one\0"
        size = fuse.SETXATTR_IN.pack(size=len(value), flags=os.XATTR_CREATE)
        mounted.ask(Opcode.SETXATTR, node, size + name + value, room=0)
        assert os.getxattr(tree / "hello", "user.one") == value
        asked = fuse.GETXATTR_IN.pack(size=1000)
        assert mounted.ask(Opcode.GETXATTR, node, asked + name) == value
        assert mounted.ask(Opcode.LISTXATTR, node, asked) == name
        length = mounted.ask(Opcode.GETXATTR, node, fuse.GETXATTR_IN.pack() + name)
        assert fuse.GETXATTR_OUT.unpack(length)["size"] == 100
        with refusal(errno.ERANGE):
            mounted.ask(Opcode.GETXATTR, node, fuse.GETXATTR_IN.pack(size=99) + name)
        with refusal(errno.EOPNOTSUPP):
            mounted.ask(Opcode.GETXATTR, node, asked + b"security.capability\0")
        mounted.ask(Opcode.REMOVEXATTR, node, name, room=0)
        with refusal(errno.ENODATA):
            mounted.ask(Opcode.GETXATTR, node, asked + name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_the_guests_users_make_is_theirs(served: Served, tree: Path) -> None:
    os.chmod(tree, 0o2777)
    os.chown(tree, 0, 4321)
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        folder = mounted.mkdir(ROOT, "folder")
        mounted.user = 1000, 1001
        mounted.create(ROOT, "file", mode=0o4755)
        mounted.mkdir(folder, "below")
        mounted.symlink(folder, "link", "nowhere")
        made = {path: (tree / path).lstat() for path in ("file", "folder/below", "folder/link")}
        assert {of.st_uid for of in made.values()} == {1000}
        # A directory with the set-group-ID bit hands its group on, to directories the bit, too.
        assert {path: of.st_gid for path, of in made.items()} == {
            "file": 4321,
            "folder/below": 4321,
            "folder/link": 4321,
        }
        assert stat.S_IMODE(made["file"].st_mode) == 0o4755


# Several workers, and their deaths.


def test_each_queue_knows_the_nodes_and_files_of_the_others(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        folder = mounted.mkdir(ROOT, "new")
        node, handle = mounted.create(folder, "file", os.O_WRONLY, 0o444)
        mounted.queue = SECOND
        mounted.write(node, handle, b"content")
        reading = mounted.open(node)
        mounted.rename(ROOT, "new", ROOT, "renamed")
        mounted.queue = THIRD
        assert mounted.getattr(node)["size"] == 7
        assert mounted.lookup("file", folder) == node
        mounted.unlink(folder, "file")
        mounted.queue = FIRST
        assert mounted.read(node, reading) == b"content"
        mounted.queue = THIRD
        mounted.write(node, handle, b"more", 7)
        assert mounted.read(node, reading) == b"contentmore"
        assert mounted.getattr(node, reading)["nlink"] == 0
        mounted.release(node, handle)
        mounted.queue = SECOND
        assert mounted.read(node, reading, 7) == b"more"


def test_a_death_takes_no_file_that_is_open(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        files = [mounted.create(ROOT, f"file {n}", mode=0o400) for n in range(30)]
        for number, (node, handle) in enumerate(files):
            mounted.write(node, handle, b"%d" % number)
            mounted.unlink(ROOT, f"file {number}")
        listing = mounted.opendir(ROOT)
        for node, handle in files[5:25:2]:
            mounted.release(node, handle)
        del files[5:25:2]
        served.wait_worker(FIRST, other_than=served.kill_worker(FIRST))
        for node, handle in files:
            assert mounted.getattr(node)["nlink"] == 0
            content = mounted.read(node, handle)
            assert mounted.write(node, handle, b"!", len(content)) == 1
            mounted.queue = SECOND
            assert mounted.read(node, handle) == content + b"!"
            mounted.queue = FIRST
        body = fuse.READ_IN.pack(fh=listing, size=4096)
        assert b"hello" in mounted.ask(Opcode.READDIR, ROOT, body)
        assert mounted.content("below/deep") == (tree / "below/deep").read_bytes()


def test_it_goes_on_after_the_masters_death(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        node, handle = mounted.create(ROOT, "file")
        mounted.write(node, handle, b"kept")
        mounted.unlink(ROOT, "file")
        before = served.status().pid
        os.kill(before, signal.SIGKILL)
        assert mounted.read(node, handle) == b"kept"
        assert served.status().pid != before
        assert mounted.lookup("below/deep")


def test_a_change_that_its_worker_dies_of_is_not_made_twice(tree: Path) -> None:
    """It dies when it is done, before the driver hears of it. test_fs_twice.py has the others."""
    with (
        serve(DyingFs, tag="share", directory=str(tree), readonly=False) as served,
        served.guest(queues=2) as guest,
    ):
        mounted = Fuse(guest)
        node, handle = mounted.create(ROOT, "file", os.O_RDWR | os.O_EXCL)
        mounted.unlink(ROOT, "file")
        assert mounted.read(node, handle) == b""
        assert served.status().queues[FIRST].restarts == 2


def test_a_file_that_is_closed_on_another_queue_is_let_go_of(served: Served, tree: Path) -> None:
    """What was deleted takes no room for long, whoever has had it open."""
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        node, handle = mounted.create(ROOT, "file")
        mounted.queue = SECOND
        mounted.write(node, handle, b"content")
        there = (tree / "file").stat()
        mounted.unlink(ROOT, "file")
        mounted.queue = FIRST
        mounted.release(node, handle)
        pids = [queue.pid for queue in served.status().queues]

        def is_it(link: Path) -> bool:
            try:
                return os.path.samestat(there, os.stat(link))
            except OSError:
                return False  # closed meanwhile

        def held() -> bool:
            return any(is_it(link) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir())

        deadline = time.monotonic() + BOUND_S
        while held():  # nothing announces what another process closes
            assert time.monotonic() < deadline
            time.sleep(0.05)


# What it does not do.


def test_nothing_is_changed_that_is_to_be_read_only(tree: Path) -> None:
    with Inlined(directory=str(tree)) as guest:
        mounted = Fuse(guest)
        node = mounted.lookup("hello")
        handle = mounted.open(node)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with refusal(errno.EROFS):
                mounted.open(node, flags)
        with refusal(errno.EROFS):
            mounted.create(ROOT, "new")
        with refusal(errno.EROFS):
            mounted.write(node, handle, b"x")
        with refusal(errno.EROFS):
            mounted.write(node, os.O_RDWR, b"x")  # a handle that nobody has given
        with refusal(errno.EROFS):
            mounted.setattr(node, valid=SetattrValid.SIZE)
        with refusal(errno.EROFS):
            mounted.mkdir(ROOT, "new")
        with refusal(errno.EROFS):
            mounted.unlink(ROOT, "hello")
        with refusal(errno.EROFS):
            mounted.rename(ROOT, "hello", ROOT, "new")
        with refusal(errno.EROFS):
            mounted.ask(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(mask=os.W_OK))
        mounted.ask(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(mask=os.R_OK))
        with refusal(errno.ENOSYS):
            mounted.ask(Opcode.GETXATTR, node, fuse.GETXATTR_IN.pack() + b"user.one\0")
        assert (tree / "hello").read_bytes() == b"hello, world"


def test_c36_nothing_leads_out_of_the_directory(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        for name in (b"..", b".", b"", b"../outside", b"below/deep", b"/etc", b"below/../../x"):
            with refusal(errno.EINVAL):
                mounted.ask(Opcode.LOOKUP, ROOT, name + b"\0")
        with refusal(errno.EINVAL):
            mounted.ask(Opcode.LOOKUP, ROOT, b"hello")  # without its end
        with refusal(errno.ENAMETOOLONG):
            mounted.lookup("x" * 256)
        for link in ("away", "up"):
            node = mounted.lookup(link)
            assert stat.S_ISLNK(mounted.getattr(node)["mode"])
            with refusal(errno.EINVAL):
                mounted.open(node)
            with refusal(errno.ENOTDIR):
                mounted.lookup("outside", node)
            with refusal(errno.ENOTDIR):
                mounted.opendir(node)
            with refusal(errno.EINVAL):
                mounted.setattr(node, valid=SetattrValid.SIZE, size=0)
        with refusal(errno.EINVAL):
            mounted.create(ROOT, "away", os.O_RDWR)
        for path in ("../new", "..", "below/new"):
            with refusal(errno.EINVAL):
                mounted.mkdir(ROOT, path)
            with refusal(errno.EINVAL):
                mounted.rename(ROOT, "hello", ROOT, path)
        # The host puts a link in the place of a directory that the guest knows, to that directory:
        # it is not the inode that tells.
        node, folder = mounted.lookup("below/deep"), mounted.lookup("below")
        (tree / "below").rename(tree.parent / "gone")
        (tree / "below").symlink_to("../gone")
        mounted.queue = SECOND
        for known in (node, folder):
            with refusal(errno.ESTALE):
                mounted.getattr(known)
        with refusal(errno.ESTALE):
            mounted.lookup("deep", folder)
    assert (tree.parent / "outside").read_text() == "secret"


def test_c36_special_files_are_not_opened_and_devices_not_made(served: Served, tree: Path) -> None:
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        node = mounted.lookup("pipe")
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with refusal(errno.EINVAL):
                mounted.open(node, flags)
            with refusal(errno.EINVAL):
                mounted.create(ROOT, "pipe", flags)
        with refusal(errno.EINVAL):
            mounted.open(ROOT)
        with refusal(errno.EINVAL):
            mounted.read(node, 0)
        for kind in (stat.S_IFBLK, stat.S_IFCHR):
            with refusal(errno.EPERM):
                mounted.mknod(ROOT, "device", kind | 0o666)


def test_c41_hostile_requests_get_an_error_or_nothing(served: Served, tree: Path) -> None:
    before = len(served.lines)
    with served.guest(queues=4) as guest:
        mounted = Fuse(guest)
        node = mounted.lookup("below/deep")
        handle = mounted.open(node, os.O_RDWR)
        whole = mounted.packed(Opcode.GETATTR, ROOT, fuse.GETATTR_IN.pack())
        assert guest.do(FIRST, [whole[:39]], [4096]).written == 0
        assert guest.do(FIRST, [], [4096]).written == 0
        assert guest.do(FIRST, [whole], [15]).written == 0
        assert guest.do(FIRST, [whole]).written == 0
        with refusal(errno.EIO):
            mounted.answered(guest.do(FIRST, [whole], [16]))
        for body in (whole + b"x", whole[:-1]):
            with refusal(errno.EINVAL):
                mounted.answered(guest.do(FIRST, [body], [4096]))
        for opcode in (0, 7, 31, 999, 0xFFFFFFFF):
            with refusal(errno.EINVAL if opcode == 0 else errno.ENOSYS):
                mounted.ask(opcode, ROOT)
        for opcode in Opcode:
            if opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY):
                for body in (b"", b"\xff" * 7, b"\xff" * 200, bytes(81 << 10)):
                    try:
                        mounted.ask(opcode, node, body)
                    except FuseError:
                        pass
        for wild in (0, 2, node + 1, node + (1 << 24), (1 << 64) - 1):
            with refusal(errno.ESTALE):
                mounted.getattr(wild)
            mounted.forget(wild, 1)
        for offset in (1 << 63, (1 << 64) - 1):
            with refusal(errno.EINVAL):
                mounted.read(node, handle, offset)
            with refusal(errno.EINVAL):
                mounted.write(node, handle, b"x", offset)
        with refusal(errno.EINVAL):
            body = fuse.WRITE_IN.pack(fh=handle, size=100)
            mounted.ask(Opcode.WRITE, node, body + b"x" * 99)
        with refusal(errno.EINVAL):
            mounted.ask(Opcode.READDIR, ROOT, fuse.READ_IN.pack(fh=handle, size=100))
        listing = fuse.READ_IN.pack(fh=mounted.opendir(ROOT), size=(1 << 32) - 1)
        assert b"below" in mounted.ask(Opcode.READDIR, ROOT, listing, room=4 << 20)
        with refusal(errno.EOPNOTSUPP):
            body = fuse.FALLOCATE_IN.pack(fh=handle, length=4096, mode=8)
            mounted.ask(Opcode.FALLOCATE, node, body)
        with refusal(errno.EINVAL):
            mounted.rename(ROOT, "hello", ROOT, "new", 4)
        for major, minor in ((6, 38), (7, 30), (0, 0)):
            with refusal(errno.EPROTO):
                mounted.ask(Opcode.INIT, 0, fuse.INIT_IN.pack(major=major, minor=minor))
        later = mounted.ask(Opcode.INIT, 0, fuse.INIT_IN.pack(major=8, minor=1))
        assert fuse.INIT_OUT.unpack(later)["major"] == 7
        batch = fuse.BATCH_FORGET_IN.pack(count=1 << 31) + fuse.FORGET_ONE.pack(nodeid=77)
        mounted.tell(Opcode.BATCH_FORGET, 0, batch)
        mounted.tell(Opcode.FORGET, node, b"")
        mounted.tell(Opcode.INTERRUPT, 0, bytes(8))
        assert guest.do(HIPRIO, [b"x" * 10]).written == 0
        with refusal(errno.EINVAL):
            tiny = fuse.READ_IN.pack(fh=mounted.opendir(ROOT), size=20)
            mounted.ask(Opcode.READDIR, ROOT, tiny)  # nothing would be its end
        assert mounted.content("hello") == b"hello, world"
        lines = served.lines[before:]
        assert not [line for line in lines if "ERROR" in line or "Traceback" in line]


def test_more_nodes_than_there_may_be_are_refused_until_some_are_forgotten(tree: Path) -> None:
    for number in range(20):
        (tree / "below" / f"{number}").touch()
    with Inlined(directory=str(tree), nodes=16) as guest:
        mounted = Fuse(guest)
        folder = mounted.lookup("below")
        known = [mounted.lookup(f"{number}", folder) for number in range(15)]
        with refusal(errno.ENFILE):
            mounted.lookup("15", folder)
        # A list that cannot tell all nodes tells the names.
        listed = mounted.listed(folder, plus=True)
        assert len(listed) == 23
        for node in known:
            mounted.forget(node, 2)
        with refusal(errno.ESTALE):
            mounted.getattr(known[0])
        assert mounted.lookup("15", folder) not in known
        # Who mounts anew has none of them.
        assert Fuse(guest).lookup("below") != folder


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"directory": "/nowhere"}, "directory", "/nowhere: No such file or directory"),
        ({"directory": "/dev/null"}, "directory", "/dev/null: Not a directory"),
        ({}, "", "one of directory and url is needed, and not both"),
        (
            {"directory": "/", "url": "x://y"},
            "",
            "one of directory and url is needed, and not both",
        ),
        ({"directory": "/", "tag": "\u00e4" * 30}, "tag", "more than 36 bytes"),
        ({"url": "file:///tmp", "readonly": False}, "readonly", "a url is only read"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], field: str, reason: str) -> None:
    assert (field, reason) in list(FsOptions(**{"tag": "share", **options}).problems())


def test_what_is_refused_is_refused_at_the_start() -> None:
    wrong = {"type": "fs", "directory": "/tmp", "tag": "x" * 37, "queues": 2, "request_queues": 0}
    with pytest.raises(ServeFailed) as refused, serve(wrong):
        pass
    for part in ("length <= 36", "request_queues says how many", "request_queues: expected"):
        assert part in str(refused.value)


def test_nobody_goes_on_with_the_nodes_of_another_directory(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    devices = [
        Fs(FsOptions(tag="x", directory=str(tmp_path / "one"))),
        Fs(FsOptions(tag="x", directory=str(tmp_path / "two"))),
        Fs(FsOptions(tag="x", directory=str(tmp_path / "one"), request_queues=2)),
    ]
    for one in devices:
        one.shared = left = one.shared_files()
        for other in devices:
            assert other.goes_on_with(left) == (one is other)
        assert not list(one.replaced_files())
    (tmp_path / "one").rename(tmp_path / "gone")
    (tmp_path / "one").mkdir()
    assert list(devices[0].replaced_files()) == [("directory", "another directory is there now")]
    for one in devices:
        for file in one.shared.values():
            file.close()
