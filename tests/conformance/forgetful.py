"""A disk whose workers keep few of an IOMMU's translations: a flood of them is a short one."""

from __future__ import annotations

from vuproc.devices.blk import Blk
from vuproc.shm.iotlb import keep_at_most

KEPT = 64


class Forgetful(Blk):
    """Each of its workers has the bound that a worker has, and a lower one."""

    def setup(self, queue: int) -> None:
        super().setup(queue)
        keep_at_most(KEPT)
