"""The devices of the manual, as an author has them: a file, a type reference, a driver."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.devices.inline import Inline
from vuproc import loader
from vuproc.device_file.check import load
from vuproc.testing import serve

MANUAL = Path(__file__).parent.parent.parent / "docs" / "devices.md"


@pytest.fixture
def entropy(tmp_path: Path) -> Path:
    """The first Python and YAML blocks of the chapter, in files."""
    chapter = MANUAL.read_text(encoding="utf-8").partition("## Writing a device\n")[2]
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
    chapter = MANUAL.read_text(encoding="utf-8").partition("### Options\n")[2]
    (block,) = re.findall(r"```python\n(.*?)```", chapter.partition("### Desc")[0], re.DOTALL)
    (entropy / "tape.py").write_text(f"{block}    def handle(self, request): pass\n")
    (entropy / "tape.yaml").write_text(
        "socket: ./s\ndevice: {type: './tape.py:Tape', path: a.tape, length: 2MiB}\n"
    )
    options = load(entropy / "tape.yaml").options
    assert options.path == str(entropy / "a.tape")  # type: ignore[attr-defined]
    assert options.length == 2 << 20  # type: ignore[attr-defined]


def test_entropy_of_the_manual_is_served(entropy: Path) -> None:
    with serve(entropy / "entropy.yaml") as device, device.guest() as guest:
        assert len(guest.do(0, in_=[64]).content) == 64
