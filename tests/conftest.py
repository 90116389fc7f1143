"""For every test: whatever it leaves behind makes it fail, and hypothesis tries the same each time.

VUPROC_LONG=1 has hypothesis look elsewhere in every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import leaks
from tests.compatibility import marks
from tests.forked_masters import FRESH, ROOT, Template
from tests.kernel import has_kvm
from vuproc.program import running

# How long anything takes on a busy machine is no failure.
settings.register_profile("long", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", settings.get_profile("long"), derandomize=True)
settings.load_profile("short" if os.environ.get("VUPROC_LONG", "") in ("", "0") else "long")


LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
OF_THE_LONG_FORM = (
    "deploy/test_node_plugin.py",
    "deploy/test_packages.py",
    "deploy/test_shells.py",
    "devices/test_blk_rbd_troubles.py",
    "guest/test_ceph.py",
    "guest/test_two_hosts.py",
    "guest/test_xen.py",
)
# All of them are here: a list in a folder of its own would take the place of this one.
collect_ignore = [
    *([] if LONG else OF_THE_LONG_FORM),
    *([] if has_kvm() else ["guest/test_display.py"]),
]


def pytest_configure(config: pytest.Config) -> None:
    leaks.adopt_orphans()
    config.addinivalue_line("markers", marks.HELP)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marks.check(items)
    # Files are given out as wholes: one that takes long must not be the last to begin.
    bounds: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            bounds[item.path] = max(bounds.get(item.path, 0.0), float(mark.args[0]))
    items.sort(key=lambda item: -bounds.get(item.path, 0.0))


@pytest.fixture(autouse=True, scope="session")
def template() -> Iterator[Template]:
    """The process of which masters are forks (`tests/forked_masters.py`)."""
    template = Template()
    yield template
    template.close()


@pytest.fixture(autouse=True, scope="module")
def forked_masters(request: pytest.FixtureRequest, template: Template) -> Iterator[None]:
    """Have masters be forks, but in tests that are about their start."""
    if request.path.relative_to(ROOT).as_posix().startswith(FRESH):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "launched", template.launched)
        yield


@pytest.fixture(autouse=True, scope="module")
def module_leaves_nothing(forked_masters: None) -> Iterator[None]:
    """As `test_leaves_nothing`, for what the fixtures of a module made."""
    before = leaks.Holdings.now()
    yield
    _fail_on(before)


@pytest.fixture(autouse=True)
def test_leaves_nothing(module_leaves_nothing: None) -> Iterator[None]:
    """Fail a test that leaves an open file, a process or shared memory behind.

    It is the first fixture of a test and so the last to be taken down.
    """
    before = leaks.Holdings.now()
    yield
    _fail_on(before)


def _fail_on(before: leaks.Holdings) -> None:
    leaked = before.leaked()
    if leaked:
        pytest.fail("left behind:\n" + "\n".join(leaked))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not even collected (`tests/guest/conftest.py`)."""
    if not has_kvm():
        terminalreporter.line(
            "not run: tests/guest/test_display.py, for QEMU's vhost-user-gpu wants KVM, and "
            "/dev/kvm cannot be opened"
        )
    if not LONG:
        terminalreporter.line(f"not run, being of the long form: {', '.join(OF_THE_LONG_FORM)}")
