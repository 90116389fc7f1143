"""The pytest plugin of vuproc: the `vuproc_device` fixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from vuproc.testing.serve import Served


class ServeDevice(Protocol):
    """What the `vuproc_device` fixture is: `vuproc.testing.serve` without the `with`."""

    def __call__(self, device: Any, /, **options: Any) -> Served: ...  # noqa: D102


@pytest.fixture
def vuproc_device() -> Iterator[ServeDevice]:
    """Start devices in processes of their own; they are stopped at the test's end.

    `vuproc_device(MyDevice, queues=2).guest()` is a guest on a device of this class.
    """
    # Every pytest run where vuproc is installed imports this file, few use the fixture.
    from vuproc.testing.serve import serve

    with ExitStack() as stack:

        def start(device: Any, /, **options: Any) -> Served:
            return stack.enter_context(serve(device, **options))

        yield start
