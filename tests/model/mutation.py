"""Puts a mistake into an algorithm.

A mistake is an edit of the worker's text: the steps are taken by their marks. What a mark stands
beside is one line, or a line and the lines indented under it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tests.model import serving

Edit = Callable[[list[str]], list[str]]
COMMON = "from tests.model.serving import Serving"


class Mistake(NamedTuple):
    """A mistake, and the name of a model that finds it."""

    name: str
    model: str
    edit: Edit

    def mutated(self, module: ModuleType, name: str) -> type[Any]:
        """The worker `name` of a module with the mistake, in its own steps or the common ones."""
        own = _text(module)
        own.remove(COMMON)
        own.remove("from __future__ import annotations")
        namespace: dict[str, object] = {"__name__": f"mutant {self.name}"}
        code = "\n".join(self.edit([*_text(serving), *own]))
        exec(compile(code, self.name, "exec"), namespace)
        mutated = namespace[name]
        assert isinstance(mutated, type)
        return mutated


def _text(module: ModuleType) -> list[str]:
    assert module.__file__ is not None
    return Path(module.__file__).read_text().splitlines()


def _block(lines: list[str], mark: str) -> tuple[int, int]:
    """Where the step of this mark begins and ends."""
    (start,) = (i for i, line in enumerate(lines) if line.endswith(f"# {mark}"))
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = start + 1
    while lines[end].startswith(" " * (indent + 1)):
        end += 1
    return start, end


def drop(mark: str) -> Edit:
    """Leave a step out."""

    def edit(lines: list[str]) -> list[str]:
        start, end = _block(lines, mark)
        indent = len(lines[start]) - len(lines[start].lstrip())
        return [*lines[:start], " " * indent + "pass", *lines[end:]]

    return edit


def swap(first: str, second: str) -> Edit:
    """Change the order of two steps."""

    def edit(lines: list[str]) -> list[str]:
        (a, b), (c, d) = _block(lines, first), _block(lines, second)
        return [*lines[:a], *lines[c:d], *lines[b:c], *lines[a:b], *lines[d:]]

    return edit


def change(mark: str, old: str, new: str) -> Edit:
    """Change the words of a step."""

    def edit(lines: list[str]) -> list[str]:
        start, end = _block(lines, mark)
        text = "\n".join(lines[start:end])
        assert text.count(old) == 1, f"{old!r} in {text!r}"
        return [*lines[:start], *text.replace(old, new).splitlines(), *lines[end:]]

    return edit


def before(mark: str, line: str) -> Edit:
    """Put a line before a step."""

    def edit(lines: list[str]) -> list[str]:
        start, _ = _block(lines, mark)
        indent = len(lines[start]) - len(lines[start].lstrip())
        return [*lines[:start], " " * indent + line, *lines[start:]]

    return edit


def then(*edits: Edit) -> Edit:
    """Several edits, one after the other."""

    def edit(lines: list[str]) -> list[str]:
        for one in edits:
            lines = one(lines)
        return lines

    return edit


def after(mark: str, moved: str, line: str) -> Edit:
    """Take the step `moved` away and put a line behind another step."""

    def edit(lines: list[str]) -> list[str]:
        lines = drop(moved)(lines)
        start, end = _block(lines, mark)
        indent = len(lines[start]) - len(lines[start].lstrip())
        return [*lines[:end], " " * indent + line, *lines[end:]]

    return edit
