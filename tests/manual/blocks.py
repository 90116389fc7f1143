"""The blocks of code in the manual, and what is to be done with each.

A block may have a mark, a comment that no reader of the page sees, in the line before it:

    <!-- not run: REASON -->        it cannot be run, or is no whole program
    <!-- run by: tests/FILE.py -->  another test runs it
    <!-- output: vuproc run -->     it is among what the program in the background has said by then
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))

FENCE = re.compile(r"^( *)```(\S*)$")
MARK = re.compile(r"<!-- (not run|run by|output): (.+) -->")
FILE_NAME = re.compile(r"# ([\w/]+\.\w+)$")
OURS = re.compile(r"vuproc(?:-\w+)?$")
SEPARATORS = {"&&", "||", "|", ";", "&"}
HERE_DOCUMENT = re.compile(
    r"<<-?\s*['\"]?(\w+)['\"]?(.*?\n)(?:.*?\n)?\s*\1$", re.DOTALL | re.MULTILINE
)
COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)


class Block(NamedTuple):
    """One of them, from `line` on. `mark` has a kind and words, empty if there is none."""

    page: Path
    line: int
    language: str
    mark: tuple[str, str]
    text: str

    @property
    def file(self) -> str:
        """The name of the file that it is, by its first line; empty if it does not say so."""
        found = FILE_NAME.match(self.text.partition("\n")[0])
        return found[1] if found else ""

    @property
    def where(self) -> str:
        """For a message."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_test(self) -> bool:
        """Whether pytest is to run it."""
        return self.language == "python" and "\ndef test_" in f"\n{self.text}"


def blocks(page: Path) -> Iterator[Block]:
    """Those of a page, in its order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(lines):
        found = FENCE.match(line)
        if not found:
            continue
        if opened is None:
            opened = number, found[1], found[2]
            continue
        start, indent, language = opened
        text = "".join(f"{each.removeprefix(indent)}\n" for each in lines[start + 1 : number])
        yield Block(page, start + 2, language, _mark(lines, start), text)
        opened = None
    assert opened is None, f"{page}: a block without an end"


def _mark(lines: list[str], start: int) -> tuple[str, str]:
    found = MARK.fullmatch(lines[start - 1].strip()) if start else None
    return (found[1], found[2]) if found else ("", "")


def all_blocks(*languages: str) -> Iterator[Block]:
    """Those of all pages that are to be run here, in some languages."""
    for page in PAGES:
        for block in blocks(page):
            if block.language in languages and block.mark[0] not in ("not run", "run by"):
                yield block


# ---- commands ------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command in lines of a shell, without what is set before it."""
    text = HERE_DOCUMENT.sub(r"\2", COMMENT.sub("", text.replace("\\\n", " ")))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.commenters = ""
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    words: list[str] = []
    for token in lexer:
        if token in SEPARATORS or not token.strip():
            if words:
                yield words
            words = []
        elif words or not re.match(r"\w+=", token):
            words.append(token)
    if words:
        yield words


def prompted(text: str) -> str:
    """What is typed in a dialogue of a terminal, in which that follows a prompt."""
    lines = [line[2:] for line in text.splitlines() if line.startswith(("$ ", "# "))]
    return "\n".join(lines)


def quoted_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of ours in lines that are indented as code, with where they are."""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("    vuproc") and OURS.match(line.split()[0]):
            for words in commands(line):
                yield f"{page.relative_to(ROOT)}:{number}", words
