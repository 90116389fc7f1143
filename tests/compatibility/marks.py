"""The mark of a test that shows a message or a bit at work with a front-end.

    @pytest.mark.proves("SET_LOG_BASE", "VHOST_F_LOG_ALL", front_end="QEMU 7.2")
    def test_a_guest_moves(shown):
        ...
        shown(served.lines)

A mark that is not quite so ends the collection. With a real front-end the test calls the fixture
`shown` with the log's lines, and fails if anything in its marks is not in them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.compatibility.front_ends import BUILT_IN, NAMES
from tests.compatibility.names import ITEMS
from tests.compatibility.ours import reason

TESTS = Path(__file__).parent.parent
MARK = "proves"
FIXTURE = "shown"
HELP = f"{MARK}(*names, front_end): shows these messages and bits at work with this front-end"


class Proof(NamedTuple):
    """One mark: what it names, with which front-end, and at which test."""

    names: tuple[str, ...]
    front_end: str
    file: str
    """From the folder above `tests`."""
    test: str
    shows: bool
    """It calls `shown`."""

    @property
    def place(self) -> str:
        """As pytest takes it."""
        return f"{self.file}::{self.test}"


def wrong(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """What is wrong with a mark's arguments; "" if nothing is."""
    if set(keywords) != {"front_end"}:
        return "it takes `front_end` and no other keyword"
    if keywords["front_end"] not in NAMES:
        return f"front_end is one of {', '.join(NAMES)}"
    if not arguments:
        return "it names no message and no bit"
    for name in arguments:
        if name not in ITEMS:
            return f"there is no message and no bit {name!r}"
        if reason(name):
            return f"{name} is refused: {reason(name)}"
    return "" if len(set(arguments)) == len(arguments) else "it names one twice"


def check(items: Iterable[pytest.Item]) -> None:
    """Raise UsageError for the first mark that is not as it should be."""
    for item in items:
        marks = list(item.iter_markers(MARK))
        for mark in marks:
            if problem := wrong(mark.args, mark.kwargs):
                raise pytest.UsageError(f"{item.nodeid}: mark {MARK}: {problem}")
        if marks:
            _check_place(item, marks)


def _check_place(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    function = getattr(item, "originalname", item.name)
    there = [proof for proof in in_file(item.path) if proof.test == function]
    plain = {(proof.names, proof.front_end) for proof in there}
    if {(mark.args, mark.kwargs["front_end"]) for mark in marks} != plain:
        raise pytest.UsageError(
            f"{item.nodeid}: mark {MARK}: it is a decorator of the test, with plain strings"
        )
    if any(proof.front_end != BUILT_IN and not proof.shows for proof in there):
        raise pytest.UsageError(
            f"{item.nodeid}: mark {MARK}: with a real front-end the test calls {FIXTURE}"
        )


@functools.cache
def in_file(path: Path) -> tuple[Proof, ...]:
    """The marks in a file of tests, from its text."""
    source = path.read_text(encoding="utf-8")
    return tuple(_marks(ast.parse(source), path)) if f"mark.{MARK}(" in source else ()


def _marks(tree: ast.Module, path: Path) -> Iterator[Proof]:
    file = str(path.relative_to(TESTS.parent)) if path.is_relative_to(TESTS.parent) else path.name
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        shows = any(
            isinstance(each, ast.Call) and ast.unparse(each.func) == FIXTURE
            for each in ast.walk(node)
        )
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"pytest.mark.{MARK}":
                names = tuple(ast.literal_eval(argument) for argument in call.args)
                keywords = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
                yield Proof(names, keywords["front_end"], file, node.name, shows)


def all_proofs() -> list[Proof]:
    """Those of every test, in the order of files and lines."""
    return [proof for path in sorted(TESTS.rglob("test_*.py")) for proof in in_file(path)]
