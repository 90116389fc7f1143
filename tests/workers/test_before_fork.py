"""What is done once, before workers are forked."""

from __future__ import annotations

import gc

import pytest

from vuproc import Device, Request
from vuproc.testing import serve
from vuproc.workers import fork_loop


class Counting(Device):
    """Says how many objects no collection in its worker looks at, and how many one does."""

    device_id = 42

    def handle(self, request: Request) -> None:
        for count in (gc.get_freeze_count(), len(gc.get_objects())):
            request.write(count.to_bytes(8, "little"))


def test_no_collection_of_a_worker_writes_to_what_it_shares_with_others() -> None:
    with serve(Counting) as served, served.guest() as guest:
        content = guest.do(in_=[16]).content
    spared, others = (int.from_bytes(content[at : at + 8], "little") for at in (0, 8))
    assert spared > 4 * others, f"{others} objects of a worker's own, {spared} of all workers'"


@pytest.mark.parametrize(
    "name", ["vuproc.devices.blk:Blk", "vuproc.devices.blk:None", "vuproc.nothing:Here", "", ":"]
)
def test_a_device_that_cannot_be_imported_is_left_to_the_worker(name: str) -> None:
    fork_loop._prepare_for(name)
