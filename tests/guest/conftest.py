"""The disk under test, and skips with a reason where a client cannot be had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import pytest

from tests.compatibility.heard import heard
from tests.compatibility.marks import MARK
from tests.guest.disk import Disk, serve_image
from vuproc.testing.vms import ClientMissing

MIB = 1 << 20


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A client that is not on this machine skips the test which asked for it."""
    try:
        return (yield)
    except ClientMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Serves an empty image with so many queues: `disk(queues=2, size=64 << 20)`."""
    with contextlib.ExitStack() as stack:

        def serve(
            *,
            queues: int = 1,
            size: int = 64 * MIB,
            expected_error: str | None = None,
            packed: bool = True,
        ) -> Disk:
            served = serve_image(
                tmp_path, queues=queues, size=size, expected_error=expected_error, packed=packed
            )
            return stack.enter_context(served)

        yield serve


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> Callable[[Iterable[str]], None]:
    """Fails unless these lines of a log have all that the test's marks say: `shown(served.lines)`.

    The log has them with `log_level: debug`.
    """

    def check(lines: Iterable[str]) -> None:
        wanted = {name for mark in request.node.iter_markers(MARK) for name in mark.args}
        assert wanted and not wanted - heard(lines)

    return check
