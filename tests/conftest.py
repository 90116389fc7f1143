"""For every test: whatever it leaves behind makes it fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import leaks


def pytest_configure() -> None:
    leaks.adopt_orphans()


@pytest.fixture(autouse=True, scope="module")
def module_leaves_nothing() -> Iterator[None]:
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
