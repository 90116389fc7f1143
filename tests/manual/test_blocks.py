"""Every block of code in the manual is run, or checked, or says why not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.manual.blocks import (
    DOCS,
    OURS,
    PAGES,
    ROOT,
    Block,
    all_blocks,
    blocks,
    commands,
    prompted,
    quoted_commands,
)
from tests.manual.session import Session
from vuproc.cli import main, program
from vuproc.device_file.check import load
from vuproc.device_file.model import File
from vuproc.devices import BUILTIN
from vuproc.loader import load as load_type

RUN = {"python", "yaml", "sh", "console", "toml"}
FREE = {"", "text", "ini", "xml", "json", "dockerfile"}
"""Pictures, what programs say, and files of others."""
OF_THE_SITE = {"{toctree}", "{eval-rst}"}
MARKED = {"cython"}
"""Languages whose blocks all need a mark."""

PAGES_WITH_A_TEST = {
    DOCS / "library.md": "tests/test_daemon_manual.py",
    DOCS / "testing.md": "tests/testing/test_manual.py",
}
"""All of their Python is run there."""
FILES_WITH_A_TEST = {DOCS / "writing-devices.md": "tests/devices/test_author.py"}
"""The Python of theirs that is in files is run there."""
TUTORIALS = (DOCS / "tutorial-disk.md", DOCS / "tutorial-device.md")

PRELUDE = "import mmap, os, struct\nfrom vuproc import *\nfrom vuproc import shared\n"
"""What a fragment may leave out, beside what blocks before it on the page have."""
PROGRAMS = {
    *("apt-get", "cat", "cd", "cp", "curl", "git", "mkdir", "mount", "pip", "pipx", "rm", "sudo"),
    *("ceph", "docker", "journalctl", "podman", "rados", "rbd", "systemctl", "systemd-run"),
    *("qemu-img", "qemu-nbd", "qemu-system-x86_64", "truncate", "virsh"),
    *("python", "python3", ".venv/bin/python", "sh", "."),
}
"""What a reader has, or gets from somewhere else."""
MOST_LINES = 90
"""Of the README: a screen or two, of which the figures are a third."""
BOUND_S = 180.0

pytestmark = pytest.mark.timeout(240)


def test_every_block_is_of_a_known_language_and_a_mark_gives_its_reason() -> None:
    for page in PAGES:
        for block in blocks(page):
            kind, reason = block.mark
            assert block.language in RUN | FREE | OF_THE_SITE | MARKED, block.where
            assert block.language not in MARKED or kind, block.where
            if kind == "run by":
                assert (ROOT / reason).is_file(), block.where


def test_the_pages_with_a_test_of_their_own_have_it() -> None:
    for page, test in (PAGES_WITH_A_TEST | FILES_WITH_A_TEST).items():
        assert page.name in (ROOT / test).read_text(encoding="utf-8")


# ---- Python --------------------------------------------------------------------------------------


def python() -> list[Block]:
    return [each for each in all_blocks("python") if each.page not in PAGES_WITH_A_TEST]


def followed(page: Path) -> set[str]:
    """The tests that the reader of a tutorial runs."""
    if page not in TUTORIALS:
        return set()
    text = "".join(block.text for block in blocks(page) if block.language == "sh")
    return set(re.findall(r"\btest_\w+\.py\b", text))


def test_tests_pass(tmp_path: Path) -> None:
    """Those of each page in a folder of their own, beside the files of the page."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # not that of a folder above
    wanted, files = 0, []
    for number, block in enumerate(python()):
        if block.page in FILES_WITH_A_TEST or not (block.file or block.is_test):
            continue
        folder = tmp_path / f"page{PAGES.index(block.page)}"
        folder.mkdir(exist_ok=True)
        path = folder / (block.file or f"test_block{number}.py")
        path.write_text(block.text, encoding="utf-8")
        if block.is_test and path.name not in followed(block.page):
            files.append(str(path))
            wanted += block.text.count("\ndef test_")
    said = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, folder=tmp_path)
    assert wanted > 2
    assert f"{wanted} passed" in said


def test_fragments_run(tmp_path: Path) -> None:
    """Definitions are made, and whatever is not in a definition is done. The fragments of one page
    are one program.
    """
    scripts = []
    for page in PAGES:
        text = "".join(
            f"# {block.where}\n{dedented(block.text)}\n"
            for block in python()
            if block.page == page and not block.file and not block.is_test
        )
        if text:
            path = tmp_path / f"page{PAGES.index(page)}.py"
            path.write_text(PRELUDE + text, encoding="utf-8")
            scripts.append(str(path))
    run_all = "import runpy, sys\nfor each in sys.argv[1:]: runpy.run_path(each, run_name='page')"
    run_python("-c", run_all, *scripts, folder=tmp_path)
    assert len(scripts) > 3


def dedented(text: str) -> str:
    indent = len(text) - len(text.lstrip(" "))
    return "\n".join(line[indent:] for line in text.splitlines())


def run_python(*arguments: str, folder: Path) -> str:
    """What it says; it has to end well."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_S,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    with Session(page, tmp_path) as session:
        assert session.follow() > 2


def test_the_device_of_the_readme_is_that_of_the_manual() -> None:
    pages = (ROOT / "README.md", DOCS / "writing-devices.md", DOCS / "tutorial-device.md")
    texts = {block.text for page in pages for block in blocks(page) if block.file == "entropy.py"}
    assert len(texts) == 1
    assert len(texts.pop().splitlines()) <= 20


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


# ---- device files --------------------------------------------------------------------------------


def whole(block: Block) -> str:
    """A device file, of one or of a part of one: with what goes without saying on that page."""
    found: Any = YAML(typ="safe").load(block.text)
    keys = set(found)
    name = block.page.stem
    if block.page.parent.name == "devices" and name in BUILTIN:
        options = set(load_type(name, ROOT).options_type.__struct_fields__)
        if keys <= options:
            lines = "".join(f"  {line}\n" for line in block.text.splitlines())
            return f"socket: ./s\ndevice:\n  type: {name}\n{lines}"
    assert keys <= set(File.__struct_fields__), f"{block.where}: no device file; needs a mark"
    more = "" if "socket" in keys else "socket: ./s\n"
    if "device" not in keys:
        more += "device: {type: blk, ram: 1MiB, queues: 4}\n"
    return more + block.text


def test_device_files_are_right(tmp_path: Path) -> None:
    """But for the files that they name, which are not here."""
    checked = 0
    for block in all_blocks("yaml"):
        for beside in all_blocks("python"):
            if beside.page == block.page and beside.file and "/" not in beside.file:
                (tmp_path / beside.file).write_text(beside.text, encoding="utf-8")
        text = whole(block)
        load(tmp_path / "file.yaml", text.encode(), look=False)
        checked += 1
    assert checked > 12


def test_files_of_packages_can_be_read() -> None:
    assert all(tomllib.loads(block.text) for block in all_blocks("toml"))


# ---- commands ------------------------------------------------------------------------------------


def all_commands() -> list[tuple[str, list[str]]]:
    found = [item for page in PAGES for item in quoted_commands(page)]
    for block in all_blocks("sh"):
        found += [(block.where, words) for words in commands(block.text)]
    for block in all_blocks("console"):
        found += [(block.where, words) for words in commands(prompted(block.text))]
    return found


def test_commands_are_understood() -> None:
    """Ours by their parsers; a module or a script that is named is there."""
    wrong, ours = [], 0
    for where, (name, *words) in all_commands():
        if OURS.match(name):
            ours += 1
            problem = refused(name, words)
        else:
            problem = lacking(name, words)
        if problem:
            wrong.append(f"{where}: {problem}")
    assert wrong == []
    assert ours > 20


def refused(name: str, words: list[str]) -> str:
    kind = name.partition("-")[2]
    parser = main.make_parser()
    if kind:
        device = load_type(kind, ROOT)
        parser = program.make_parser(kind, device)
    try:
        parser.parse_args(words)
    except SystemExit:
        return f"{name} {' '.join(words)}"
    return ""


def lacking(name: str, words: list[str]) -> str:
    if name not in PROGRAMS:
        return f"what is {name}?"
    if name == "sh" and not (ROOT / words[0]).is_file():
        return f"no {words[0]}"
    if "python" in name and words[:1] == ["-m"] and find_spec(words[1]) is None:
        return f"no module {words[1]}"
    return ""


def test_a_wrong_command_is_found() -> None:
    assert list(commands("A=1 vuproc run --no x.yaml && cp a b # c\nsh deploy/test")) == [
        ["vuproc", "run", "--no", "x.yaml"],
        ["cp", "a", "b"],
        ["sh", "deploy/test"],
    ]
    assert list(commands("cat > a <<END\nb: c\nEND\ncp a \\\n  b")) == [
        ["cat", ">", "a"],
        ["cp", "a", "b"],
    ]
    assert list(commands(prompted("$ cp a b\nok\n$ cat b"))) == [["cp", "a", "b"], ["cat", "b"]]
    assert refused("vuproc", ["run", "--nothing", "x.yaml"])
    assert refused("vuproc-blk", ["--nothing"])
    assert not refused("vuproc-blk", ["--socket-path", "s", "--blk-file", "disk.raw"])
    assert lacking("python", ["-m", "tests.bench.nothing"])
    assert lacking("frobnicate", [])
