"""A device's code as its files are now: what counts as changed, and what becomes of it."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuproc.device import Device
from vuproc.device_file import imported
from vuproc.errors import DeviceLoadError

DEVICE = """
    from vuproc import Device
    {imports}

    class Dev(Device):
        device_id = 4
        answer = {answer}

        def handle(self, request): pass
"""


class Folder:
    """The folder of a device file, whose files change within one second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = 0

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        self._stamp += 1
        os.utime(path, ns=(self._stamp, self._stamp))

    def device(self, imports: str = "import helper", answer: str = "helper.ANSWER") -> None:
        self.write("dev.py", DEVICE.format(imports=imports, answer=answer))

    def load(self, ref: str = "./dev.py:Dev") -> type[Device]:
        return imported.load(ref, self.path)


def answer(device: type[Device]) -> int:
    return int(device.answer)  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = set(sys.modules)
    yield Folder(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("ref", ["./dev.py:Dev", "dev:Dev"])
def test_c11_a_changed_helper_is_imported_anew(folder: Folder, ref: str) -> None:
    folder.write("helper.py", "ANSWER = 1\n")
    folder.device()
    first = folder.load(ref)
    assert folder.load(ref) is first
    # As long as the one before, and as old in whole seconds: so is what Python has compiled.
    folder.write("helper.py", "ANSWER = 2\n")
    second = folder.load(ref)
    assert (answer(first), answer(second)) == (1, 2)
    assert folder.load(ref) is second


@pytest.mark.parametrize(
    ("name", "imports", "said"),
    [
        ("parts/__init__.py", "import parts", "parts.ANSWER"),
        ("parts/deep.py", "import parts.deep", "parts.deep.ANSWER"),
        ("parts/deep.py", "from parts import deep", "deep.ANSWER"),
        ("deep.py", "import helper", "helper.ANSWER"),
    ],
    ids=["package", "module of a folder", "from a folder", "import of an import"],
)
def test_c11_what_comes_with_it_counts(folder: Folder, name: str, imports: str, said: str) -> None:
    folder.write("helper.py", "import deep\nANSWER = deep.ANSWER\n" if name == "deep.py" else "")
    folder.write(name, "ANSWER = 1\n")
    folder.device(imports, said)
    assert answer(folder.load()) == 1
    folder.write(name, "ANSWER = 2\n")
    assert answer(folder.load()) == 2


def test_c11_a_module_that_a_description_imports_counts(folder: Folder) -> None:
    folder.write("late.py", "")
    folder.device("", "1")
    first = folder.load()
    __import__("late")
    imported.note("./dev.py:Dev", folder.path)
    folder.write("late.py", "# changed\n")
    assert folder.load() is not first


@pytest.mark.parametrize("broken", ["ANSWER = \n", "1 / 0\n", None])
def test_c11_code_that_cannot_be_imported_leaves_what_there_was(
    folder: Folder, broken: str | None
) -> None:
    folder.write("helper.py", "ANSWER = 1\n")
    folder.device()
    first, helper = folder.load(), sys.modules["helper"]
    before = set(sys.modules)
    if broken is None:
        (folder.path / "helper.py").unlink()
    else:
        folder.write("helper.py", broken)
    with pytest.raises(DeviceLoadError):
        folder.load()
    assert sys.modules["helper"] is helper
    assert sys.modules[first.__module__].Dev is first
    assert set(sys.modules) == before
    folder.write("helper.py", "ANSWER = 2\n")
    assert answer(folder.load()) == 2


def test_c11_installed_packages_do_not_count(folder: Folder) -> None:
    site = folder.path / "lib" / "site-packages"
    folder.write("lib/site-packages/tool_of_others.py", "ANSWER = 1\n")
    sys.path.append(str(site))
    folder.device("import tool_of_others", "tool_of_others.ANSWER")
    first = folder.load()
    folder.write("lib/site-packages/tool_of_others.py", "ANSWER = 2\n")
    assert folder.load() is first


def test_c11_only_what_no_reload_looks_at_may_be_imported_beforehand(folder: Folder) -> None:
    folder.device("", "1")
    folder.load("dev:Dev")
    assert not imported.is_installed("dev:Dev", folder.path)
    elsewhere = folder.path / "elsewhere"
    imported.load("blk", elsewhere)
    assert imported.is_installed("blk", elsewhere)
