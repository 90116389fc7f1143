"""What vuproc may say in its log at the levels of warning and above, from its source.

Lines are templates: what is put in is an ellipsis, `queue …: broken: …`. A call whose template is
in a variable, or is all ellipsis, says what an exception says, and is known by its place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "vuproc"
WITHOUT = (SOURCES / "testing",)
"""Rooms that have no log of a device."""

METHODS = {"warning", "error", "critical", "exception"}
KEEPER = SOURCES / "handover" / "keeper"
KEEPER_SAYS = "self._say"
EVENTS = SOURCES / "events.py"
DIRECTIVE = re.compile(r"%%|%[-+ #0]*[\d*]*(?:\.\d+)?[a-zA-Z]")
GAP = "…"


class Line(NamedTuple):
    """One of them. `template` is empty if it is known by its `place` alone."""

    place: str
    template: str


def said() -> Iterator[Line]:
    """All of them, by file."""
    for path in sorted(SOURCES.rglob("*.py")):
        if any(folder in path.parents for folder in WITHOUT):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for template in _logged(tree):
            yield _line(path, template)
        if KEEPER in path.parents:
            for template in _said_by_keeper(tree):
                yield _line(path, template)
        if path == EVENTS:
            yield from _events(path, tree)


def _logged(tree: ast.AST) -> Iterator[ast.expr]:
    """The first argument of each call of a logger, after its level."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (node.args and _is_logger(node.func.value)):
            continue
        if node.func.attr in METHODS:
            yield node.args[0]
        elif node.func.attr == "log" and len(node.args) > 1:
            yield node.args[1]


def _said_by_keeper(tree: ast.AST) -> Iterator[ast.expr]:
    """It has no levels: whatever it says is worth a look."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) == KEEPER_SAYS:
            yield node.args[0]


def _is_logger(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return text.startswith("logging.getLogger(") or text.rpartition(".")[2].lstrip("_") == "log"


def _line(path: Path, template: ast.expr) -> Line:
    text = re.sub(f"{GAP}+", GAP, _text(template).partition("\n")[0])
    text = text.replace(f"queue{GAP} {GAP}:", f"queue{GAP}:")  # its plural
    return Line(str(path.relative_to(ROOT)), text if re.search(r"\w", text) else "")


def _text(node: ast.expr) -> str:
    """The template of an expression; an ellipsis for what is known only later."""
    match node:
        case ast.Constant(value=str() as text):
            return DIRECTIVE.sub(lambda found: "%" if found[0] == "%%" else GAP, text)
        case ast.JoinedStr(values=values):
            return "".join(
                each.value if isinstance(each, ast.Constant) else GAP  # type: ignore[misc]
                for each in values
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return GAP


def _events(path: Path, tree: ast.Module) -> Iterator[Line]:
    """What events say that are worth a warning, or may be."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name == "Event":
            continue
        methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
        if "level" not in methods or "__str__" not in methods:
            continue
        for each in ast.walk(methods["__str__"]):
            if isinstance(each, ast.Return) and each.value is not None:
                yield _line(path, each.value)
