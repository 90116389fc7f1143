"""systemd, asked by its own programs."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BOUND_S = 180.0
"""Above every time that a unit allows."""
SYSTEM = Path("/etc/systemd/system")


class Failed(Exception):
    """A program that ended with another exit code than 0; with what it said."""


def run(*command: str, bound_s: float = BOUND_S) -> str:
    """What a program says; Failed if it does not end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=bound_s)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def ctl(*arguments: str) -> str:
    """systemctl."""
    return run("systemctl", "--no-pager", *arguments)


def refused(*arguments: str) -> str:
    """systemctl, which must not succeed; what it says."""
    try:
        said = ctl(*arguments)
    except Failed as failed:
        return str(failed)
    raise AssertionError(f"systemctl {' '.join(arguments)} went well: {said}")


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit."""
    text = ctl("show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def prop(unit: str, name: str) -> str:
    """One of them."""
    return show(unit, name)[name]


def main_pid(unit: str) -> int:
    """The serving process."""
    return int(prop(unit, "MainPID"))


def wait_for(what: str, holds: Callable[[], Any], bound_s: float = BOUND_S) -> Any:
    """What `holds` gives, once that is something; AssertionError after `bound_s`."""
    deadline = time.monotonic() + bound_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited {bound_s:g} s for {what}"
        time.sleep(0.05)
    return found


def wait_state(unit: str, state: str) -> None:
    """Until a unit is in a state."""
    wait_for(f"{unit} to be {state}", lambda: prop(unit, "ActiveState") == state)


def wait_for_another(unit: str, before: int) -> None:
    """Until a unit has another main process, and that is ready."""

    def there() -> bool:
        found = show(unit, "MainPID", "ActiveState")
        return found["ActiveState"] == "active" and int(found["MainPID"]) not in (0, before)

    wait_for(f"another main process of {unit}", there)


def journal(*match: str) -> list[dict[str, Any]]:
    """Entries of the journal that match fields, oldest first."""
    text = run("journalctl", "--no-pager", "-o", "json", *match)
    return [json.loads(line) for line in text.splitlines()]


def texts(unit: str) -> list[str]:
    """What the journal has of a unit: its own lines, and systemd's about it."""
    return [str(entry["MESSAGE"]) for entry in journal("-u", unit)]


def exposure(unit: str) -> float:
    """What `systemd-analyze security` makes of a unit that is loaded."""
    text = run("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for .*: (\d+\.\d)", text)
    assert found, text
    return float(found[1])


@contextlib.contextmanager
def dropped_in(unit: str, text: str) -> Iterator[None]:
    """A unit has a drop-in, the last of all that it has; systemd has read it."""
    path = SYSTEM / f"{unit}.d" / "test.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    try:
        ctl("daemon-reload")
        yield
    finally:
        path.unlink()
        ctl("daemon-reload")
