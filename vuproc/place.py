"""Where in an author's files something stands, as `file:line`; for messages, and so on mistakes
alone.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vuproc import texts

PACKAGE = Path(__file__).parent
"""The folder of vuproc itself."""
MAX_SHOWN = 60
"""Characters of a value that a message repeats."""

_OTHERS = ("<", f"{PACKAGE}{os.sep}", f"{os.path.dirname(os.__file__)}{os.sep}")
"""How the files of vuproc and of Python begin, and what stands for a file where there is none."""
_BASES = ("vuproc.device", "vuproc.device_description", "vuproc.options")
"""The modules of the bases which an author's classes are made from."""
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
"""The folders of installed packages."""

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def of_class(cls: type) -> str:
    """The line of an author's class; its file alone if no class statement made it, else ""."""
    if _ours(cls):
        return ""
    path, node = _statement(cls)
    return f"{path}:{node.lineno}" if path and node is not None else path


def of_attribute(cls: type, *names: str) -> str:
    """The line that sets one of `names` in `cls` or in the base it comes from.

    What comes from a base of vuproc's own is the class's matter: its line is returned.
    """
    for home in cls.__mro__:
        if any(name in vars(home) or name in annotations_of(home) for name in names):
            return of_class(cls) if _ours(home) else _line_in(home, names)
    return of_class(cls)


def of_error(error: BaseException, module: str = "") -> str:
    """The innermost line of the author's that `error` came by; "" if it came by none.

    The author's is what lies beside the file of `module`, or else what is neither in vuproc nor in
    a library.
    """
    frames = traceback.extract_tb(error.__traceback__)
    folder = _folder(module)
    near = [frame for frame in frames if folder in Path(frame.filename).parents]
    other = [frame for frame in frames if not is_of_others(frame.filename)]
    chosen = (near or other)[-1:]
    return "".join(f"{frame.filename}:{frame.lineno}" for frame in chosen)


def blame(error: BaseException, default: str = "", module: str = "") -> str:
    """The error in one line, after the line of the author's code that raised it, or `default`."""
    return at(of_error(error, module) or default, texts.described(error))


def about(cls: type, name: str, text: str, *also: str) -> str:
    """A text on what `name` is in a class, after its line; or on one of `also` that decides it."""
    return at(of_attribute(cls, name, *also), f"{cls.__name__}.{text}")


def raised(cls: type, name: str, error: BaseException) -> str:
    """The error which the method `name` of a class raised, in one line."""
    where = of_error(error, cls.__module__) or of_attribute(cls, name)
    return at(where, f"{cls.__name__}.{name}: {texts.described(error)}")


def at(place: str, text: str) -> str:
    """The text with its place before it, if that is known."""
    return f"{place}: {text}" if place else text


def shown(value: object) -> str:
    """A value as a message repeats it."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def is_of_others(path: str) -> bool:
    """Whether a file is vuproc's, Python's or an installed package's."""
    return path.startswith(_OTHERS) or any(folder in path for folder in _INSTALLED)


def annotations_of(cls: type) -> dict[str, Any]:
    """Those in the body of a class, as they are; none if Python has to evaluate them and fails."""
    try:
        return inspect.get_annotations(cls)
    except Exception:
        return {}


def _ours(cls: type) -> bool:
    return cls is object or cls.__module__ in _BASES


def _line_in(cls: type, names: tuple[str, ...]) -> str:
    path, node = _statement(cls)
    if node is None:
        return path
    for statement in node.body:
        if not _named(statement).isdisjoint(names):
            return f"{path}:{statement.lineno}"
    return f"{path}:{node.lineno}"


def _named(statement: ast.stmt) -> set[str]:
    """The names that a statement of a class's body sets."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _statement(cls: type) -> tuple[str, _Definition | None]:
    """The file of a class, and the statement that made it; "" and None where there is none."""
    module = sys.modules.get(cls.__module__)
    path = getattr(module, "__file__", None) or ""
    try:
        node: ast.AST | None = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return path, None
    for name in cls.__qualname__.split("."):
        if name != "<locals>":
            node = None if node is None else _last(node, name)
    return path, node if isinstance(node, _Definition) else None


def _last(tree: ast.AST, name: str) -> _Definition | None:
    """The last definition of `name` in a tree: the one that counts if there are several."""
    found = [n for n in ast.walk(tree) if isinstance(n, _Definition) and n.name == name]
    return max(found, key=lambda node: node.lineno, default=None)


def _folder(module: str) -> Path | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    return None if path is None else Path(path).parent
