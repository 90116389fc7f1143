"""Completion in real shells at a terminal: a verb, an option and a device file, by the Tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vuproc.cli.completion import script

BOUND_S = 60.0
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
    "tcsh": ["tcsh", "-f", "-i"],
}
START = {
    "bash": "source {script}",
    # As in a .zshrc, with the script in a folder of fpath.
    "zsh": "fpath=({folder} $fpath); autoload -U compinit; compinit -u -D",
    "fish": "source {script}",
    "tcsh": "source {script}",
}
COLOURS = re.compile(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|[()][A-B0-9]|[=>]|\][^\a]*\a)")


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "TERM": "xterm"}
            os.execvpe(command[0], list(command), environment)
        self.said = ""

    def send(self, text: str) -> None:
        """Type it, from an empty page."""
        self.said = ""
        os.write(self.fd, text.encode())

    def run(self, command: str) -> None:
        """Have a command run, and wait for its end."""
        # What is typed is on the page, too, but not what it prints.
        self.send(f'{command}; echo "<"">"\r')
        self.wait_for("<>")

    def wait_for(self, text: str) -> None:
        """Until it is on the page; fails after a while."""
        deadline = time.monotonic() + BOUND_S
        while text not in COLOURS.sub("", self.said):
            left = deadline - time.monotonic()
            assert left > 0, repr(self.said)
            if select.select([self.fd], [], [], left)[0]:
                self.said += os.read(self.fd, 4096).decode(errors="replace")

    def close(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}: apt-get install {shell}")
    source = tmp_path / "_vuproc"
    source.write_text(script(shell, "vuproc"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "disk.yaml").touch()
    (work / "different.txt").touch()
    terminal = Terminal(SHELLS[shell], work)
    try:
        terminal.run(START[shell].format(script=source, folder=tmp_path))
        for typed, completed in (
            ("vuproc sch\t", "vuproc schema"),
            ("vuproc run --super\t", "vuproc run --supervised"),
            ("vuproc run di\t", "vuproc run disk.yaml"),
        ):
            terminal.send(typed)
            terminal.wait_for(completed)
            terminal.send("\x03")  # the line is given up
            terminal.run("true")
    finally:
        terminal.close()
