"""docs/testing.md: its examples pass as they stand there, and it names all that is public."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vuproc.testing

MANUAL = Path(__file__).parents[2] / "docs" / "testing.md"
INHERITED = {*dir(object), *dir(Exception)}


def examples() -> dict[str, str]:
    """Every block of Python by the file name in its first line."""
    text = MANUAL.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python")
    return dict(blocks)


def public_names() -> list[str]:
    """What is exported, and the methods, properties and fields of each class of ours."""
    found = []
    for name in vuproc.testing.__all__:
        found.append(name)
        value = getattr(vuproc.testing, name)
        if inspect.isclass(value):
            found += [member for member in dir(value) if not member.startswith("_")]
    return sorted({name for name in found if name not in INHERITED})


@pytest.mark.timeout(120)
def test_the_examples_pass(tmp_path: Path) -> None:
    wanted = 0
    for name, code in examples().items():
        (tmp_path / name).write_text(code)
        wanted += len(re.findall(r"^def test_", code, re.MULTILINE))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert wanted > 5
    assert f"{wanted} passed" in done.stdout


def test_the_page_has_every_public_name() -> None:
    """In code, so that a word of the prose does not count."""
    text = re.sub(r"```.*?```", "", MANUAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert [name for name in public_names() if name not in words] == []
