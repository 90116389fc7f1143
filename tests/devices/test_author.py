"""The devices of the manual, as an author has them: a file, a type reference, a driver."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices.inline import Inline
from vuproc import Device, loader, shared
from vuproc.device_file.check import load
from vuproc.testing import serve

MANUAL = Path(__file__).parent.parent.parent / "docs" / "writing-devices.md"


@pytest.fixture
def entropy(tmp_path: Path) -> Path:
    """The first Python and YAML blocks of the chapter, in files."""
    chapter = MANUAL.read_text(encoding="utf-8")
    blocks = dict(reversed(re.findall(r"```(python|yaml)\n# \S+\n(.*?)```", chapter, re.DOTALL)))
    (tmp_path / "entropy.py").write_text(blocks["python"])
    (tmp_path / "entropy.yaml").write_text(blocks["yaml"])
    return tmp_path


def test_entropy_of_the_manual_fills_what_the_driver_gives(entropy: Path) -> None:
    device = loader.load("./entropy.py:Entropy", entropy)
    inline = Inline(device())
    first = inline.chain([], [16, 48])
    second = inline.chain([], [64])
    assert (first.written, second.written) == (64, 64)
    assert first.content != second.content
    assert inline.chain([b"only readable"]).written == 0
    inline.close()


def test_options_of_the_manual_are_checked(entropy: Path) -> None:
    chapter = MANUAL.read_text(encoding="utf-8").partition("## Options\n")[2]
    (block,) = re.findall(r"```python\n(.*?)```", chapter.partition("## Desc")[0], re.DOTALL)
    (entropy / "tape.py").write_text(f"{block}    def handle(self, request): pass\n")
    (entropy / "tape.yaml").write_text(
        "socket: ./s\ndevice: {type: './tape.py:Tape', path: a.tape, length: 2MiB}\n"
    )
    options = load(entropy / "tape.yaml").options
    assert options.path == str(entropy / "a.tape")  # type: ignore[attr-defined]
    assert options.length == 2 << 20  # type: ignore[attr-defined]


def chapter_examples() -> dict[str, str]:
    """Every block of Python of the chapter that has a file name in its first line."""
    chapter = MANUAL.read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", chapter, re.DOTALL))


@pytest.mark.timeout(150)
def test_the_examples_of_the_manual_pass(tmp_path: Path) -> None:
    wanted = 0
    for name, code in chapter_examples().items():
        (tmp_path / name).write_text(code)
        wanted += len(re.findall(r"^def test_", code, re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # One of them is there for two devices.
    assert wanted > 7
    assert f"{wanted + 1} passed" in done.stdout


def test_the_manual_names_all_that_an_author_has() -> None:
    """In code, so that a word of the prose does not count."""
    text = re.sub(r"```.*?```", "", MANUAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    public = [name for owner in (Device, shared) for name in vars(owner) if name[0].islower()]
    ours = [
        name
        for name in public
        if getattr(getattr(shared, name, None), "__module__", "vuproc.shared").startswith("vuproc.")
        and not inspect.ismodule(getattr(shared, name, None))
    ]
    assert [name for name in ours if name not in words and name != "attach"] == []


def test_entropy_of_the_manual_is_served(entropy: Path) -> None:
    with serve(entropy / "entropy.yaml") as device, device.guest() as guest:
        assert len(guest.do(0, in_=[64]).content) == 64
