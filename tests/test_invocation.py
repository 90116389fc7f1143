"""A program that was started in one folder starts itself again from another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vuproc

SOURCE = Path(vuproc.__file__).parent.parent
TOY = """
import os, sys
from vuproc import invocation
def main():
    if sys.argv[1:] == ["again"]:
        import beside
        print("again in", os.getcwd(), beside.VALUE, sys.flags.utf8_mode, len(sys.warnoptions))
        return
    words = invocation.program()
    invocation.leave_folder()
    import beside
    os.execv(words[0], [*words, "again"])
"""
START = "from toy import main; main()"


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "toy"],
        ["-X", "utf8", "-W", "ignore", "-Bmtoy"],
        ["./script"],
        ["-Wignore", "-Xutf8", "script"],
        ["-c", START],
        ["-P", "-m", "toy"],
        ["-P", "-c", START],
    ],
    ids=" ".join,
)
def test_a4_whatever_named_the_program_it_is_found_from_elsewhere(
    tmp_path: Path, words: list[str]
) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text(TOY)
    (package / "__main__.py").write_text(START)
    (tmp_path / "script").write_text(START)
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    # With -P the folder is found by its relative name, and otherwise because the start was there.
    search = os.pathsep.join([str(SOURCE), *(["."] if "-P" in words else [])])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    options = "1 1" if any("utf8" in word for word in words) else "0 0"
    assert done.stdout == f"again in / 7 {options}\n"
