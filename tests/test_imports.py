"""The layout's arrows: who may import whom, no circles, and how little a worker process imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vuproc"

FORBIDDEN = {
    "vuproc.spec": ("vuproc",),
    "vuproc.errors": ("vuproc",),
    "vuproc.session": ("vuproc.workers", "vuproc.master", "vuproc.control", "vuproc.shm", "socket"),
    "vuproc.state": ("vuproc.workers", "vuproc.master", "vuproc.control", "vuproc.shm", "socket"),
    "vuproc.transitions": ("vuproc.workers", "vuproc.master", "vuproc.control", "socket", "time"),
    "vuproc.shm": ("vuproc.workers", "vuproc.master", "vuproc.session", "vuproc.wire"),
    "vuproc.devices": ("vuproc.config", "vuproc.cli", "vuproc.master", "vuproc.workers"),
    "vuproc.testing": ("vuproc.cli", "vuproc.master", "vuproc.session", "vuproc.workers"),
    "vuproc.master": ("vuproc.cli", "vuproc.config", "vuproc.shm"),
    "vuproc.workers": ("vuproc.cli", "vuproc.config", "vuproc.master", "vuproc.session"),
}
"""What the modules under each name must not import; `vuproc.spec` may import itself."""

NOT_IN_A_WORKER = {
    "argparse",
    "pytest",
    "rich",
    "ruamel",
    "vuproc.cli",
    "vuproc.config",
    "vuproc.master",
    "vuproc.session",
    "vuproc.wire",
    "vuproc.testing",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports at run time, with `from a import b` as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def under(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")


@pytest.mark.parametrize("top", FORBIDDEN)
def test_imports_go_one_way(top: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if under(name, top)
        for imported in imports_of(path)
        for forbidden in FORBIDDEN[top]
        if under(imported, forbidden) and not under(imported, top)
    ]
    assert wrong == []


def test_nobody_imports_the_command_line_and_only_it_imports_serve() -> None:
    users = {
        name: {module for module in imports_of(path) if module in ("vuproc.cli", "vuproc.serve")}
        for name, path in MODULES.items()
    }
    assert {name for name, used in users.items() if "vuproc.cli" in used} <= {"vuproc.__main__"}
    assert {name for name, used in users.items() if "vuproc.serve" in used} <= {"vuproc.cli"}


def test_there_are_no_circles() -> None:
    """Imports inside functions do not count: they are there to keep start-up short."""
    graph = {
        name: {
            module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module in _named(node)
            if module in MODULES and module != name
        }
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()


def _named(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.module is not None
    submodules = {f"{node.module}.{alias.name}" for alias in node.names}
    inner = submodules & MODULES.keys()
    return inner or {node.module}


def test_a_worker_imports_little() -> None:
    code = "import sys, vuproc.workers.main, vuproc.devices.blk; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, text=True, timeout=30, cwd=ROOT)
    imported = set(output.split())
    assert NOT_IN_A_WORKER & imported == set()
