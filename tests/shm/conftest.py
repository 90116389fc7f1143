"""A guest and a record, looked at once more when the test is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shm.guest import Guest
from tests.shm.record import Record


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made
        assert made.intact()


@pytest.fixture
def record() -> Iterator[Record]:
    with Record(8) as made:
        yield made
        # The record before it in the file is another queue's.
        assert not any(made.bytes[: made.offset])
