"""The parts that start guests, without a guest."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vuproc.testing.guests import ClientMissing, GuestFailed, clients, lz4
from vuproc.testing.guests.cpio import Archive
from vuproc.testing.guests.elf import interpreter, with_libraries
from vuproc.testing.guests.kernel import Modules
from vuproc.testing.guests.process import GuestProcess, family

# A child with a child which has left it: only the session still ties the latter to the first one.
ORPHAN_MAKER = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(1000)
"""


def python(program: str) -> GuestProcess:
    return GuestProcess([sys.executable, "-c", program])


def test_kill_ends_descendants_whose_parent_is_gone() -> None:
    with python(ORPHAN_MAKER) as process:
        process.wait_for(lambda line: line == "ready", 10.0, "the orphan")
        (orphan,) = family(process.pid)
    assert (
        not Path(f"/proc/{orphan}/cmdline").exists()
        or not Path(f"/proc/{orphan}/cmdline").read_bytes()
    )


def test_wait_gives_the_exit_code_and_all_output() -> None:
    with python("print('x' * 200000); print('last'); raise SystemExit(3)") as process:
        assert process.wait(10.0) == 3
    assert process.lines == ["x" * 200000, "last"]


def test_wait_for_tells_of_an_early_end_with_the_output() -> None:
    with python("print('what it said'); raise SystemExit(4)") as process:
        with pytest.raises(GuestFailed, match="exit code 4") as failed:
            process.wait_for(lambda line: False, 10.0, "what never comes")
    assert failed.value.output == ["what it said"]


def test_a_wait_ends_in_time() -> None:
    with python("import time; print('up', flush=True); time.sleep(1000)") as process:
        process.wait_for(lambda line: line == "up", 10.0, "its start")
        with pytest.raises(GuestFailed, match=r"waited 0\.01 s"):
            process.wait(0.01)


def test_busybox_reads_the_archive_back(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("/a/b/odd", b"x" * 4097, mode=0o755)
    archive.file("/empty", b"")
    archive.write(tmp_path / "archive")
    with (tmp_path / "archive").open("rb") as archived:
        subprocess.run(
            [clients.busybox(), "cpio", "-i", "-d"], stdin=archived, cwd=tmp_path, check=True
        )
    assert (tmp_path / "a/b/odd").read_bytes() == b"x" * 4097
    assert stat.S_IMODE((tmp_path / "a/b/odd").stat().st_mode) == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


def test_modules_load_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, depends in {"top-most": "mid_dle", "mid-dle": "base", "base": ""}.items():
        info = b"\x7fELF..\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        (tmp_path / f"{name}.ko").write_bytes(info)
    order = Modules(tmp_path).load_order(["top_most", "base", "built-in"])
    assert list(order) == ["base", "mid_dle", "top_most"]


def test_a_program_comes_with_its_loader_and_libraries() -> None:
    program = Path(os.path.realpath("/bin/sh"))
    files = with_libraries(program)
    assert files[0] == program
    assert files[1] == interpreter(program)
    assert any(file.name.startswith("libc.so") for file in files)


def test_a_missing_client_names_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VUPROC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClientMissing, match=r"no User-Mode Linux: there is no linux\.uml"):
        clients.user_mode_linux()


# By hand: "abcd", a copy of 8 from 4 back, "e" and 20 of it, which needs a length of two bytes.
LZ4_BLOCK = b"\x44abcd\x04\x00" + b"\x1fe\x01\x00\x01" + b"\x10!"


def test_lz4_copies_overlap_and_lengths_go_on() -> None:
    frame = lz4.MAGIC + len(LZ4_BLOCK).to_bytes(4, "little") + LZ4_BLOCK + b"size"
    assert lz4.decompress(frame) == b"abcdabcdabcd" + b"e" * 21 + b"!"


def test_lz4_refuses_a_copy_from_before_the_start() -> None:
    frame = lz4.MAGIC + (7).to_bytes(4, "little") + b"\x40abcd\x05\x00"
    with pytest.raises((ValueError, IndexError)):
        lz4.decompress(frame)
