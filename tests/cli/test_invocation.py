"""A program that was started in one folder starts itself again from another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import multiprocess.util  # noqa: F401  # imported late otherwise, when nothing is found any more
import pytest

import vuproc
from vuproc.cli import invocation

SOURCE = Path(vuproc.__file__).parent.parent
CODE = "import sys; from vuproc.cli.main import main; sys.exit(main())"
FILE = str(SOURCE / "vuproc" / "__main__.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the start was."""
    (tmp_path / "script").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["-m", "vuproc"], FILE, ["-m", "vuproc"]),
        (["-X", "utf8", "-Bmvuproc"], FILE, ["-X", "utf8", "-Bmvuproc"]),
        (["./script"], "./script", ["{folder}/script"]),
        (["-X", "utf8", "-P", "script"], "script", ["-X", "utf8", "-P", "{folder}/script"]),
        (["-c", CODE], "-c", ["-c", CODE]),
        (["/usr/bin/vuproc"], "/usr/bin/vuproc", ["/usr/bin/vuproc"]),
        ([FILE], FILE, [FILE]),
    ],
)
def test_a4_an_installed_program_is_named_as_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *words, "run", "disk.yaml"])
    monkeypatch.setattr(sys, "argv", [name, "run", "disk.yaml"])
    monkeypatch.setattr(sys, "path", [str(folder), str(SOURCE)])
    found = [word.format(folder=folder) if "{folder}" in word else word for word in expected]
    assert invocation.program() == (sys.executable, *found)


@pytest.mark.parametrize("words", [["-m", "vuproc"], ["-W", "error", "-Smvuproc"], ["-c", CODE]])
def test_a4_a_checkout_in_the_folder_of_the_start_is_named_by_its_file(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *words, "run", "disk.yaml"])
    monkeypatch.setattr(sys, "argv", ["-c" if CODE in words else FILE, "run", "disk.yaml"])
    for first in (str(SOURCE), ""):
        monkeypatch.setattr(sys, "path", [first, "/elsewhere"])
        monkeypatch.chdir(SOURCE)
        assert invocation.program()[-1] == FILE
    # And so it is found from anywhere, with its own modules behind it.
    command = [*invocation.program(), "check", "/nowhere.yaml"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == "/nowhere.yaml: no such file or directory\n"


def test_a4_modules_are_found_where_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["", "lib", "/usr/lib"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "", "/usr/lib"]))
    invocation.leave_folder()
    assert os.getcwd() == "/"
    assert sys.path == [str(folder), f"{folder}/lib", "/usr/lib"]
    found = os.environ["PYTHONPATH"].split(os.pathsep)
    assert found == [f"{folder}/lib", str(folder), "/usr/lib"]


def test_a4_what_a_finder_goes_by_is_left_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(entry: str) -> object:
        if entry != "__a_word__":
            raise ImportError
        return object()

    monkeypatch.setattr(sys, "path_hooks", [*sys.path_hooks, hook])
    monkeypatch.setattr(sys, "path", ["__a_word__", "lib"])
    invocation.leave_folder()
    assert sys.path == ["__a_word__", f"{folder}/lib"]
