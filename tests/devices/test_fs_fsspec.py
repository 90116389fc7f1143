"""The file system of what fsspec has at a URL: an archive, a local directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.devices.fuse_driver import Fuse, FuseError, Inlined
from vuproc.devices import fs_question
from vuproc.devices.fs import FsOptions
from vuproc.spec import fuse
from vuproc.spec.fuse import ROOT, Opcode
from vuproc.testing import serve

pytestmark = pytest.mark.timeout(90)

FIRST, SECOND = 1, 2


def refused(number: int) -> Any:
    return pytest.raises(FuseError, match=f"^{errno.errorcode[number]}$")


def test_an_archive_is_read_on_all_queues_and_over_a_death(tmp_path: Path) -> None:
    large = os.urandom(300_000)
    with zipfile.ZipFile(tmp_path / "tree.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/below/large", large)
        archive.writestr("folder/small", "small")
        archive.writestr("../escape", "x")
        for number in range(100):
            archive.writestr(f"many/{number}", "")
    url = f"zip://::{tmp_path / 'tree.zip'}"
    with (
        serve({"type": "fs", "tag": "archive", "url": url, "request_queues": 2}) as served,
        served.guest(queues=3) as guest,
    ):
        mounted = Fuse(guest)
        node = mounted.lookup("folder/below/large")
        of = mounted.getattr(node)
        assert (of["size"], of["mode"]) == (len(large), 0o100444)
        handle = mounted.open(node)
        for turn in range(2):
            mounted.queue = SECOND - turn
            parts = [mounted.read(node, handle, at, 40_000) for at in range(0, 320_000, 40_000)]
            assert b"".join(parts) == large
            if not turn:
                served.wait_worker(FIRST, other_than=served.kill_worker(FIRST))
        assert mounted.content("folder/small") == b"small"
        assert mounted.listed(ROOT, plus=True).keys() == {"folder", "many"}
        listed = mounted.listed(mounted.lookup("many"), 1000, plus=True)
        assert listed.keys() == {str(number) for number in range(100)}
        assert all(mounted.getattr(told)["size"] == 0 for told in listed.values())
        with refused(errno.ENOENT):
            mounted.lookup("folder/nothing")
        with refused(errno.EINVAL):
            mounted.lookup("..")
        with refused(errno.EROFS):
            mounted.open(node, os.O_RDWR)
        with refused(errno.EROFS):
            mounted.create(ROOT, "new")
        with refused(errno.EROFS):
            mounted.mkdir(ROOT, "new")
        with refused(errno.EISDIR):
            mounted.open(mounted.lookup("folder"))
        with refused(errno.ENOTDIR):
            mounted.opendir(node)
        with refused(errno.ENOSYS):
            mounted.ask(Opcode.READLINK, node)
        assert fuse.STATFS_OUT.unpack(mounted.ask(Opcode.STATFS, ROOT))["bsize"] == 4096
        assert not [line for line in served.lines if "ERROR" in line]


def test_links_of_a_local_directory_are_not_shown(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "file").write_text("content")
    (tmp_path / "outside").write_text("secret")
    (root / "link").symlink_to("../outside")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    url = f"file://{root}"
    (root / "what?else=1").write_text("a name")
    with Inlined(url=url, nodes=16) as guest:
        mounted = Fuse(guest)
        assert mounted.listed(ROOT).keys() == {"file", "what?else=1"}
        assert mounted.content("what?else=1") == b"a name"
        for name in ("file?else=1", "%2e%2e", "zip:", "*"):
            with refused(errno.ENOENT):
                mounted.lookup(name)
        assert mounted.content("file") == b"content"
        of = mounted.getattr(mounted.lookup("file"))
        assert of["mtime"] == int((root / "file").stat().st_mtime)
        for name in ("link", "up", "pipe"):
            with refused(errno.ENOENT):
                mounted.lookup(name)
        for number in range(30):
            (root / f"{number}").touch()
        listed = mounted.listed(ROOT, plus=True)
        assert len(listed) == 32 and 0 < list(listed.values()).count(0) < 20
        for offset in (1 << 63, (1 << 64) - 1):
            node = mounted.lookup("file")
            with refused(errno.EINVAL):
                mounted.read(node, mounted.open(node), offset)


def test_without_fsspec_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    problems = dict(FsOptions(tag="x", url="zip://::/x.zip").problems())
    assert "pip install 'vuproc[fs]'" in problems["url"]


FILE = """\
socket: ./fs.sock
device:
  type: fs
  tag: share
  url: {url}
"""
CHECK = """\
import sys
from vuproc.cli.main import main
code = main(["check", sys.argv[1]])
print("imported" if "fsspec" in sys.modules else "not imported")
sys.exit(code)
"""
"""The verb, and whether it has the library in its process afterwards."""
WITHHELD = """\
import fsspec
fsspec.register_implementation("withheld", "nobody.has.This", errtxt="install withheld")
"""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("zip://::/srv/tree.zip", None),
        ("zip://::nowhere://bucket/tree.zip", "fsspec has no nowhere:"),
        ("nowhere::/srv/tree", "fsspec has no nowhere:"),
        ("withheld://bucket", "withheld: install withheld"),
    ],
)
def test_the_check_refuses_what_fsspec_has_no_file_system_for(
    url: str, why: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "fs.yaml"
    file.write_text(FILE.format(url=url))
    if url.startswith("withheld"):
        # Whichever packages are here, this one is not.
        (tmp_path / "sitecustomize.py").write_text(WITHHELD)
    command = [sys.executable, "-c", CHECK, str(file)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if why is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2, done.stderr
        assert f"{file}:5:8: url: {url}: {why}" in done.stdout + done.stderr
    if not url.startswith("withheld"):
        assert done.stdout.splitlines()[-1] == "not imported"


def test_schemes_are_those_of_the_whole_chain() -> None:
    assert fs_question.protocols("/srv/tree") == ["file"]
    assert fs_question.protocols("s3://bucket/folder") == ["s3"]
    chain = "simplecache::zip://a.txt::/srv/tree.zip"
    assert fs_question.protocols(chain) == ["simplecache", "zip", "file"]
