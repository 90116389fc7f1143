"""The tests of memory that a Xen domain shares, on Xen itself: in its first domain."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.xen.machine import boot

BOOT_S = 180.0
TESTS_S = 1800.0
COMMAND = [
    *("timeout", f"{TESTS_S:.0f}", sys.executable, "-m", "pytest", "-q", "-n0", "-rA"),
    *("-p", "no:cacheprovider", "tests/xen"),
]

pytestmark = pytest.mark.timeout(BOOT_S + TESTS_S)


def test_domains_of_the_real_hypervisor_are_served(tmp_path: Path) -> None:
    with boot(COMMAND, tmp_path) as guest:
        assert guest.wait_for("xen=", BOOT_S).startswith("xen=xen 4.")
        report = guest.finish(TESTS_S)
    (summary,) = [line for line in report.lines if re.search(r"\d+ passed", line)]
    assert "skipped" not in summary and "failed" not in summary, report.lines
