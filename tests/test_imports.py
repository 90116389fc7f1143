"""The floors of the house: nobody imports from a higher one, there are no circles, and a worker
process imports little.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vuproc"

FLOORS = (
    ("vuproc.__main__", "vuproc.program.entry"),
    ("vuproc.cli", "vuproc.testing"),
    ("vuproc.serve", "vuproc.warm_start", "vuproc.shared_forkserver", "vuproc.daemon"),
    ("vuproc.program",),
    ("vuproc.ops",),
    (
        "vuproc.master",
        "vuproc.front_end",
        "vuproc.object_desk",
        "vuproc.shmem_desk",
        "vuproc.translation_desk",
        "vuproc.arrivals",
        "vuproc.host",
    ),
    ("vuproc.handover",),
    ("vuproc.pool",),
    ("vuproc.workers", "vuproc.device_file"),
    ("vuproc.loader", "vuproc.devices", "vuproc.device_object", "vuproc.struct_class"),
    ("vuproc.vhost_user", "vuproc.shm", "vuproc.listener", "vuproc.open_files"),
    (
        "vuproc.device",
        "vuproc.parking",
        "vuproc.shared",
        "vuproc.sharing",
        "vuproc.mapping",
        "vuproc.display",
        "vuproc.asks",
        "vuproc.logs",
        "vuproc.log_formats",
        "vuproc.place",
        "vuproc.signals",
        "vuproc.poll_set",
    ),
    (
        "vuproc.device_description",
        "vuproc.options",
        "vuproc.fd",
        "vuproc.outcome",
        "vuproc.sandbox",
        "vuproc.log_limit",
        "vuproc.unix_path",
        "vuproc.chores",
        "vuproc.garbage",
        "vuproc.inquiries",
        "vuproc.events",
    ),
    ("vuproc.texts", "vuproc.remedies", "vuproc.handover.keeper"),
    ("vuproc.errors",),
    ("vuproc.spec",),
)
"""From the top. The longest name that fits counts: `vuproc.handover.keeper` is a program of its
own, which imports nothing.
"""

FOR_DEVELOPERS = ("test", "fuzz", "bench")
"""Extras for nobody who uses vuproc."""
MODULE_OF = {"python-can": "can", "ruamel.yaml": "ruamel"}
"""Of packages that are not named for their module."""

PURE = ("vuproc.vhost_user.session", "vuproc.vhost_user.handlers", "vuproc.vhost_user.state")
"""No socket, clock or process in what they import themselves."""
EFFECTFUL = {"socket", "time", "select", "selectors", "subprocess", "multiprocess"}

NOT_IN_A_WORKER = (
    "argparse",
    "pytest",
    "rich",
    "ruamel",
    "vuproc.cli",
    "vuproc.device_file",
    "vuproc.device_object",
    "vuproc.master",
    "vuproc.ops",
    "vuproc.place",
    "vuproc.pool",
    "vuproc.serve",
    "vuproc.spec.vhost_user",
    "vuproc.struct_class",
    "vuproc.testing",
    "vuproc.vhost_user.session",
    "vuproc.vhost_user.wire",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports at run time, with `from a import b` as `a` and `a.b`."""
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = _absolute(node, path)
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that an import is from, also that of a relative one: the keeper has those."""
    package = module_name(path.parent / "__init__.py").split(".")
    parts = package[: len(package) + 1 - node.level] if node.level else []
    return ".".join([*parts, node.module or ""])


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All below `node` that runs, and not for a type checker only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _nodes(child)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor_of(module: str) -> int | None:
    """The number of the module's floor, from the top; None if it has none."""
    found = [
        (len(name), number)
        for number, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


def test_every_module_has_a_floor() -> None:
    assert [name for name in MODULES if name != "vuproc" and floor_of(name) is None] == []


def test_what_is_imported_from_elsewhere_is_declared() -> None:
    """A package that only the tests' environment happens to have is missing on other machines. What
    an extra brings is imported where it is asked for, and its absence is said.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = _names(project["dependencies"])
    extras = _names(
        word
        for extra, words in project["optional-dependencies"].items()
        if extra not in FOR_DEVELOPERS
        for word in words
    )
    wrong = [
        f"{name} imports {module}"
        for name, path in MODULES.items()
        for module in {imported.partition(".")[0] for imported in imports_of(path)}
        if module not in sys.stdlib_module_names and module != "vuproc"
        if module not in always and module not in extras
    ]
    assert wrong == []


def _names(requirements: Iterable[str]) -> set[str]:
    """The modules that the packages of some requirements have, as far as we use them."""
    named = {re.split(r"[^\w.-]", word, maxsplit=1)[0] for word in requirements}
    return {MODULE_OF.get(name, name) for name in named}


def test_no_floor_imports_a_higher_one() -> None:
    """`if TYPE_CHECKING` does not count: nothing of it is imported."""
    wrong = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if (own := floor_of(name)) is not None
        for imported in imports_of(path)
        if imported in MODULES and (other := floor_of(imported)) is not None and other < own
    ]
    assert wrong == []


def test_the_session_has_no_socket_clock_or_process() -> None:
    assert [
        f"{name} imports {imported}"
        for name in PURE
        for imported in imports_of(MODULES[name])
        if imported in EFFECTFUL
    ] == []


def test_there_are_no_circles() -> None:
    """Imports inside functions do not count: they are there to keep start-up short."""
    graph = {
        name: {
            module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module in _named(node, path)
            if module in MODULES and module != name
        }
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()


def _named(node: ast.Import | ast.ImportFrom, path: Path) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.module is not None
    module = _absolute(node, path)
    submodules = {f"{module}.{alias.name}" for alias in node.names}
    inner = submodules & MODULES.keys()
    return inner or {module}


def test_a_worker_imports_little() -> None:
    code = "import sys, vuproc.workers.main, vuproc.devices.blk; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, text=True, timeout=30, cwd=ROOT)
    too_much = [
        module
        for module in output.split()
        for name in NOT_IN_A_WORKER
        if module == name or module.startswith(f"{name}.")
    ]
    assert too_much == []
