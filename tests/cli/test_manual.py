"""The manual pages: of every program, with all that it takes, and without a fault."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from vuproc.cli import main, manual, program
from vuproc.cli.roff import Page, escaped
from vuproc.device_file.model import File, Sandbox, Socket
from vuproc.devices import BUILTIN

EPOCH, DATE = 86400, "1970-01-02"
PAGES = {page.name: page for page in manual.pages(DATE)}


def test_there_is_a_page_of_each_program_and_of_the_device_file() -> None:
    assert set(PAGES) == {*main.PROGRAMS, "vuproc-device-file"}


def test_the_page_has_every_verb_with_its_options_and_examples() -> None:
    source = str(PAGES["vuproc"])
    for name, verb in manual.verbs(main.make_parser()).items():
        assert f'.SS "vuproc {escaped(name)}"' in source
        for action in verb._actions:
            assert all(escaped(flag) in source for flag in action.option_strings)
    # What argparse's own help shows below the options, and a line that begins with a full stop.
    assert escaped("vuproc run disk.yaml --supervised") in source
    assert r"vuproc devices ./entropy.py:Entropy" in source


@pytest.mark.parametrize("name", BUILTIN)
def test_the_page_of_a_type_explains_its_options(name: str) -> None:
    device = program.class_of(name)
    parser = program.make_parser(name, device)
    source = str(PAGES[f"vuproc-{name}"])
    for action in parser._actions:
        assert all(rf"\fB{escaped(flag)}\fR" in source for flag in action.option_strings)
    # Each has words below its head.
    assert not re.search(r"\.TP\n[^\n]+\n\\&", source)


@pytest.mark.parametrize("struct", [File, Socket, Sandbox])
def test_the_page_of_the_device_file_has_its_keys(struct: type[msgspec.Struct]) -> None:
    source = str(PAGES["vuproc-device-file"])
    for field in msgspec.structs.fields(struct):
        assert rf"\fB{escaped(field.encode_name)}\fR" in source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them were written."""
    found = tmp_path_factory.mktemp("man")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
        written = {path.relative_to(found).as_posix() for path in manual.write(found)}
    assert {"man1/vuproc.1", "man1/vuproc-blk.1", "man5/vuproc-device-file.5"} <= written
    return found


def test_the_same_sources_make_the_same_bytes(folder: Path) -> None:
    for page in PAGES.values():
        path = folder / f"man{page.section}" / f"{page.name}.{page.section}"
        assert f" {page.section} {DATE} " in path.read_text().splitlines()[0]
        assert path.read_text() == str(page)


def test_what_roff_would_take_for_its_own_is_text() -> None:
    page = Page("x", 1, "y", date=DATE, source="s", manual="m")
    page.text(".PP is \\fBnot\\fR a macro, 'nor is' this - µs")
    page.example(".nf\n'so")
    lines = str(page).splitlines()
    assert r"\&.PP is \efBnot\efR a macro, \(aqnor is\(aq this \- \[u00B5]s" in lines
    assert r"\&.nf" in lines
    assert r"\(aqso" in lines


CHECKERS = {
    "groff": ["groff", "-ww", "-man", "-Tutf8", "-z"],
    "mandoc": ["mandoc", "-Tlint", "-Wwarning"],
    "man": ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"],
}


def test_those_who_set_pages_find_no_fault(folder: Path) -> None:
    """Whichever of them are here; Debian's are in `tests/deploy`."""
    paths = sorted(folder.glob("man*/*"))
    assert len(paths) == len(PAGES)
    for name, command in CHECKERS.items():
        if shutil.which(name) is None:
            print(f"not asked, since it is not here: {name}")
            continue
        found = subprocess.run(
            [*command, *paths],
            stdout=subprocess.PIPE if name == "mandoc" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
        )
        assert (found.stdout or "") + found.stderr == ""
        assert found.returncode == 0
