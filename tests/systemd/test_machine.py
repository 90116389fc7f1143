"""The units of `deploy/systemd`, and vuproc under them, run by systemd itself.

What happens inside is in `inside`: steps, of which each is a test here. One machine boots for all
of them. The long form has all steps, the short one the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.systemd.container import Container
from tests.systemd.inside.console import MARK
from tests.systemd.inside.steps import all_steps
from vuproc.testing.vms import ClientMissing, GuestFailed, clients

LONG = bool(os.environ.get("VUPROC_LONG"))
LIMIT_S = 2400 if LONG else 120
"""Seconds for all steps; the machine ends itself then."""
ENDING_S = 60
"""And for its end."""
SYSTEMDS = ["installed", "trixie"] if LONG else ["installed"]
LATER = 257
"""Debian 13's."""
STEPS = list(all_steps()) if LONG else ["started_and_stopped"]

pytestmark = pytest.mark.timeout(LIMIT_S + 2 * ENDING_S)


def later(suite: str) -> Path | None:
    """Where systemd of a later suite of Debian's was unpacked; None: the one that is installed."""
    if suite == "installed":
        return None
    found = clients.cache() / f"systemd-{suite}"
    if not found.exists():
        how = f"VUPROC_LONG=1 {clients.HOW}"
        raise ClientMissing(f"systemd of {suite}", f"there is no {found} ({how})")
    return found


@pytest.fixture(scope="module", params=SYSTEMDS)
def outcome(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """What became of each step: "ok", or all that was said of it, with the journal."""
    try:
        machine = Container(LIMIT_S, " ".join(STEPS), later(request.param))
    except ClientMissing as missing:
        pytest.skip(str(missing))
    with machine:
        machine.process.wait(LIMIT_S + ENDING_S)
        lines = [line.removeprefix(MARK) for line in machine.process.lines]
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "begin":
            name = rest
            found[name] = ""
        elif word == "ok":
            found[name] = "ok"
        elif name and found[name] != "ok":
            found[name] += f"{line}\n"
    if machine.later is not None and f"systemd {LATER}" not in lines:
        raise GuestFailed(f"it was not systemd {LATER}", lines)
    if not any(line.startswith("exit ") for line in lines):
        raise GuestFailed("the machine ended before its steps did", lines)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_under_systemd(outcome: Mapping[str, str], step: str) -> None:
    assert outcome.get(step, "it was not run") == "ok", outcome.get(step)
