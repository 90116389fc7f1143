"""A reader at two terminals who follows a page from its beginning to its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.manual.blocks import Block, blocks

BOUND_S = 150.0
HOME = "/home/you"
"""The folder in which the page's reader is."""
IN_BACKGROUND = "vuproc run"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Session:
    """Files are written, commands are run, and what they say is what the page says they do.

    Numbers may differ, and so may spaces. `vuproc run` goes on in the background, and is to have
    ended in order when the page does.
    """

    def __init__(self, page: Path, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._output = ""
        self._log = folder / "terminal"
        self._running: subprocess.Popen[bytes] | None = None
        bin_folder = str(Path(sys.executable).parent)
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join((bin_folder, os.environ["PATH"])),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.terminate()
            self._running.wait(BOUND_S)

    def follow(self) -> int:
        """Do all that the page says; how many commands that were."""
        count = 0
        for block in blocks(self._page):
            if block.mark[0] == "not run":
                continue
            if block.language == "sh":
                self._run(block)
                count += 1
            elif block.language == "text":
                self._compare(block)
            elif block.file:
                (self._folder / block.file).write_text(block.text, encoding="utf-8")
        if self._running is not None:
            assert self._running.wait(BOUND_S) == 0, self._said()
        return count

    def _run(self, block: Block) -> None:
        command = ["bash", "-eu", "-o", "pipefail", "-c", block.text]
        if block.text.startswith(IN_BACKGROUND):
            with self._log.open("wb") as log:
                self._running = subprocess.Popen(
                    ["bash", "-c", f"exec {block.text}"],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self._await("serving")
            return
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert done.returncode == 0, f"{block.where}: {done.stdout}\n{self._said()}"
        self._output = done.stdout

    def _compare(self, block: Block) -> None:
        if block.mark == ("output", IN_BACKGROUND):
            wanted = self._plain(block.text)
            self._await(wanted[-1])
            there = iter(self._plain(self._said()))
            assert all(line in there for line in wanted), f"{block.where}: {self._said()}"
            return
        output = self._output or self._said()
        assert self._plain(output) == self._plain(block.text), f"{block.where}: {output}"

    def _await(self, wanted: str) -> None:
        assert self._running is not None
        deadline = time.monotonic() + BOUND_S
        while not any(wanted in line for line in self._plain(self._said())):
            assert time.monotonic() < deadline and self._running.poll() is None, self._said()
            time.sleep(0.02)
        self._output = ""

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""

    def _plain(self, text: str) -> list[str]:
        """Lines without what differs from one reader to another."""
        text = NUMBER.sub("N", text.replace(str(self._folder), HOME))
        return [" ".join(line.split()) for line in text.strip().splitlines()]
