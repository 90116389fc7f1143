"""docs/library.md: its example is that of examples/, its code runs, and it names what is public."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vuproc.events
from tests.test_daemon_programs import BOUND_S, line
from vuproc import Daemon
from vuproc.testing.guest import Guest

ROOT = Path(__file__).parents[1]
MANUAL = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "entropy.py"
MOST_LINES = 40


def blocks() -> list[str]:
    """The code of the page, in its order."""
    return re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)


def test_the_example_is_short_and_is_that_of_the_page() -> None:
    assert blocks()[0] == EXAMPLE.read_text(encoding="utf-8")
    assert len(blocks()[0].splitlines()) < MOST_LINES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_the_example_serves_a_guest_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "entropy.sock"
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)))
    command = [sys.executable, "-u", str(EXAMPLE), "./entropy.sock", "source"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as process:
        try:
            assert line(process) == "serving Entropy, 1 queue in 1 worker"
            with Guest(path) as guest:
                assert guest.do(0, [], [4, 8]).content == bytes(range(12))
                assert guest.do(0, [], [4]).content == bytes(range(12, 16))
            process.send_signal(number)
            assert process.wait(BOUND_S) == 0
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == [source]


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    """All of it in one program, as a reader who follows the page would have it."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks()[1:]))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=None,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it was asked to stop" in done.stdout
    assert list(tmp_path.iterdir()) == [script]


def test_the_page_names_every_method_and_event() -> None:
    """In code, so that a word of the prose does not count."""
    text = re.sub(r"```.*?```", "", MANUAL, flags=re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    wanted = {name for name in dir(Daemon) if not name.startswith("_")} - {"running"}
    for name, value in vars(vuproc.events).items():
        if inspect.isclass(value) and issubclass(value, vuproc.events.Event):
            wanted |= {name, *value.__struct_fields__} - {"Event", "then"}
    wanted |= set(inspect.signature(Daemon).parameters)
    assert sorted(wanted - words) == []
