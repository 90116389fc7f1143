"""What shells complete: asked of bash, here; of other shells in `tests/deploy`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vuproc.cli import main
from vuproc.cli.completion import script
from vuproc.cli.manual import verbs

BASH = shutil.which("bash") or pytest.fail("there is no bash")

ASK = """\
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""As readline calls it: the words so far, of which the last is completed."""


def completed(folder: Path, *words: str) -> set[str]:
    """What bash has for the last of the words, in a folder with some files."""
    (folder / "work" / "more").mkdir(parents=True, exist_ok=True)
    for name in ("disk.yaml", "net.yml", "notes.txt", "disk.sock"):
        (folder / "work" / name).touch()
    source = folder / "script"
    source.write_text(script("bash", words[0]))
    answer = subprocess.run(
        [BASH, "--norc", "-c", ASK, "ask", source, *words],
        cwd=folder / "work",
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    return set(answer.stdout.split())


def test_a_verb_is_completed(tmp_path: Path) -> None:
    assert completed(tmp_path, "vuproc", "st") == {"status", "stop", "stats"}


def test_every_verb_and_option_is_known(tmp_path: Path) -> None:
    assert set(verbs(main.make_parser())) <= completed(tmp_path, "vuproc", "")
    assert completed(tmp_path, "vuproc", "run", "--l") == {"--log-level"}
    assert completed(tmp_path, "vuproc", "run", "--log-level", "w") == {"warning"}
    assert completed(tmp_path, "vuproc", "hint", "qemu") == {"qemu", "qemu-microvm"}


def test_a_device_file_is_completed_and_a_folder_of_them(tmp_path: Path) -> None:
    assert completed(tmp_path, "vuproc", "run", "") == {"disk.yaml", "net.yml", "more"}
    assert completed(tmp_path, "vuproc", "hint", "qemu", "d") == {"disk.yaml"}
    assert completed(tmp_path, "vuproc", "status", "d") == {"disk.yaml", "disk.sock"}
    assert completed(tmp_path, "vuproc", "discovery", "") == {"more"}


def test_the_program_of_a_type_has_its_options(tmp_path: Path) -> None:
    assert "--write-back" in completed(tmp_path, "vuproc-blk", "--w")
    assert completed(tmp_path, "vuproc-blk", "--engine", "") == {
        "auto",
        "io_uring",
        "map",
        "python",
        "sync",
    }
    assert completed(tmp_path, "vuproc-blk", "--blk-file", "no") == {"notes.txt"}


@pytest.mark.parametrize("shell", main.SHELLS)
def test_there_is_a_script_of_each_program(shell: str) -> None:
    """What each shell makes of it is in `tests/deploy/test_shells.py`."""
    for name in main.PROGRAMS:
        made = script(shell, name)
        assert name in made
        assert ("run" if name == "vuproc" else "queue-size") in made


def test_without_shtab_it_says_so(tmp_path: Path) -> None:
    """It is no dependency, and nothing else needs it."""
    (tmp_path / "shtab.py").write_text("raise ModuleNotFoundError('no', name='shtab')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-m", "vuproc", "completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert answer.returncode == 1
    assert "pip install 'vuproc[completion]'" in answer.stderr
    assert answer.stdout == ""


def test_a_normal_start_imports_nothing_of_it() -> None:
    code = (
        "import sys; from vuproc.cli import main, program; main.make_parser(); print(*sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=30)
    makers = {"shtab", "vuproc.cli.completion", "vuproc.cli.manual", "vuproc.cli.reference"}
    assert not makers & set(output.split())
