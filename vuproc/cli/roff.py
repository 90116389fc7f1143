"""A manual page in the macros of man(7), which groff and mandoc set alike."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

_COLUMNS = 64
"""Of the source's lines: mandoc complains of those above 80 bytes, and escapes take some."""

_ESCAPES = {
    "\\": r"\e",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
    '"': r"\(dq",
}
"""What roff would set as something else: a hyphen for a minus, a curved quote, an accent."""
_SENTENCE = re.compile(r"(?<=[.?!]) +(?=[A-Z])")


def escaped(text: str) -> str:
    """The text as roff sets it character by character; of one line."""
    found = "".join(
        _ESCAPES.get(char) or (char if char.isascii() else rf"\[u{ord(char):04X}]") for char in text
    )
    # A control character at the start of a line would make it a macro.
    return rf"\&{found}" if found.startswith(".") else found


def bold(text: str) -> str:
    """For what is written as it stands."""
    return rf"\fB{escaped(text)}\fR"


def italic(text: str) -> str:
    """For what stands for something else."""
    return rf"\fI{escaped(text)}\fR"


class Page:
    """A page that grows from its top; `str` is its source."""

    def __init__(
        self, name: str, section: int, line: str, *, date: str, source: str, manual: str
    ) -> None:
        """`line` says in a few words what `name` is; `date` is YYYY-MM-DD."""
        self.name = name
        self.section = section
        self._lines = [
            f".TH {escaped(name.upper())} {section} {date} {_quoted(source)} {_quoted(manual)}"
        ]
        self.heading("NAME")
        self._lines.append(rf"{escaped(name)} \- {escaped(line)}")

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._lines.append(f".SH {_quoted(text)}")

    def subheading(self, text: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f".SS {_quoted(text)}")

    def usage(self, text: str) -> None:
        """A synopsis, hung below its first words, which are the program's."""
        program, _, rest = text.partition(" [")
        words = f"[{rest}" if rest else ""
        self._lines += [".HP", bold(program), *_filled(words)]

    def text(self, text: str) -> None:
        """Paragraphs, between empty lines. Lines of them that are indented are set as they are."""
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            if not self._lines[-1].startswith((".SH", ".SS")):
                self._lines.append(".PP")
            for indented, lines in _runs(paragraph.splitlines()):
                if indented:
                    self.example(textwrap.dedent("\n".join(lines)))
                else:
                    self._lines += _filled(" ".join(lines))

    def example(self, text: str) -> None:
        """Lines as they are, indented."""
        self._lines += [".RS 4", ".nf", *map(escaped, text.splitlines()), ".fi", ".RE"]

    def entry(self, head: str, text: str) -> None:
        """A row of a list; its head is set already (`bold`, `italic`)."""
        self._lines += [".TP", head, *(_filled(text) if text else [r"\&"])]


def _quoted(text: str) -> str:
    return f'"{escaped(text)}"'


def _filled(text: str) -> Iterator[str]:
    """A paragraph's source, each sentence from a line's start, as roff tells sentences apart."""
    for sentence in _SENTENCE.split(" ".join(text.split())):
        lines = textwrap.wrap(sentence, _COLUMNS, break_long_words=False, break_on_hyphens=False)
        yield from map(escaped, lines)


def _runs(lines: Iterable[str]) -> Iterator[tuple[bool, list[str]]]:
    """Lines that follow each other and are indented, or are not."""
    run: list[str] = []
    for line in lines:
        indented = line.startswith("  ")
        if run and run[0].startswith("  ") != indented:
            yield not indented, run
            run = []
        run.append(line)
    if run:
        yield run[0].startswith("  "), run
