"""Signatures and docstrings of native classes: autodoc imports modules, and these say less of
themselves than the stubs beside them (`.pyi`), which type checkers read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx


class Said(NamedTuple):
    """What a stub says of one name."""

    signature: str
    returns: str
    doc: str


@cache
def stub(module: str) -> Mapping[str, Said]:
    """What the stub of a module says, by the name in it (`Request.read`); empty without a stub."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin)
    path = path.with_name(path.name.partition(".")[0] + ".pyi")
    if not path.is_file():
        return {}
    return dict(_names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _names(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Said]]:
    for each in body:
        if isinstance(each, ast.ClassDef):
            yield prefix + each.name, Said("", "", ast.get_docstring(each) or "")
            yield from _names(each.body, f"{prefix}{each.name}.")
        elif isinstance(each, ast.FunctionDef):
            if any("setter" in ast.unparse(decorator) for decorator in each.decorator_list):
                continue
            signature, returns = _signature(each, method=bool(prefix))
            yield prefix + each.name, Said(signature, returns, ast.get_docstring(each) or "")


def _signature(function: ast.FunctionDef, *, method: bool) -> tuple[str, str]:
    """Empty for a property."""
    if any(ast.unparse(decorator) == "property" for decorator in function.decorator_list):
        return "", ""
    arguments = function.args
    if method:
        del (arguments.posonlyargs or arguments.args)[:1]  # `self`
    returns = ast.unparse(function.returns) if function.returns else ""
    return f"({ast.unparse(arguments)})", returns


def _of(name: str) -> Said | None:
    """What is said of a full name, the longest prefix of which that is a module has a stub."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 1, -1):
        try:
            found = stub(".".join(parts[:end]))
        except (ImportError, ValueError):
            continue
        if found:
            return found.get(".".join(parts[end:]))
    return None


def _sign(
    app: Sphinx, what: str, name: str, of: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, str] | None:
    said = _of(name)
    if said is None or not said.signature:
        return None
    return said.signature, said.returns


def _document(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    said = _of(name)
    if said is not None and said.doc:
        lines[:] = [*said.doc.splitlines(), ""]
    lines[:] = [_as_rst(line) for line in lines]


def _as_rst(line: str) -> str:
    """A line of a docstring: what is in single backquotes is code, and all else is plain."""
    parts = line.replace("``", "`").split("`")
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|[*|]", r"\\\g<0>", part) for part in parts[::2]]
    return "``".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-docstring", _document)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
