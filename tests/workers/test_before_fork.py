"""What is done once, before workers are forked."""

from __future__ import annotations

import gc
import sys

import pytest

from vuproc import Device, Request
from vuproc.testing import serve
from vuproc.workers import fork_loop

SPARED = 5000
"""Objects that are there once vuproc and its libraries are imported, and more."""


class Counting(Device):
    """Says how many objects no collection in its worker looks at."""

    device_id = 42

    def handle(self, request: Request) -> None:
        request.write(gc.get_freeze_count().to_bytes(8, "little"))


class Reading(Device):
    """Gives what it finds in its standard input, and a mark."""

    device_id = 42

    def handle(self, request: Request) -> None:
        request.write(sys.stdin.read().encode() + b"!")


def test_a_worker_has_an_empty_standard_input() -> None:
    with serve(Reading) as served, served.guest() as guest:
        assert guest.do(in_=[8]).content == b"!"


def test_no_collection_of_a_worker_writes_to_what_it_shares_with_others() -> None:
    with serve(Counting) as served, served.guest() as guest:
        spared = int.from_bytes(guest.do(in_=[8]).content, "little")
    assert spared > SPARED, "nothing is, unless the forkserver has seen to it"


@pytest.mark.parametrize(
    "name", ["vuproc.devices.blk:Blk", "vuproc.devices.blk:None", "vuproc.nothing:Here", "", ":"]
)
def test_a_device_that_cannot_be_imported_is_left_to_the_worker(name: str) -> None:
    fork_loop.prepare_for(name)
