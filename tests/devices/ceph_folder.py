"""A Ceph cluster that is a folder, for the stand-in of Ceph's modules (`ceph_stand_in`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAND_IN = Path(__file__).parent / "ceph_stand_in"
SIZE = 16 << 20
BOUND_S = 30.0


class Cluster:
    """The folder that is one, with an image `disk` in the pool `pool`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "ceph.conf"
        self.conf.touch()
        self.image = folder / "pool" / "disk"
        self.image.parent.mkdir()
        self.image.touch()
        os.truncate(self.image, SIZE)

    def device(self, image: str = "pool/disk", **options: Any) -> dict[str, Any]:
        return {"type": "blk", "rbd": image, "rbd_conf": str(self.conf), **options}

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def sandbox(self) -> dict[str, Any]:
        """The stand-in's pools are files."""
        return {"sandbox": {"mode": "standard", "files": [str(self.folder)]}}


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """One, with Ceph's modules replaced in all that is started."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setattr(sys, "path", [str(STAND_IN), *sys.path])
    return Cluster(folder)


def until(holds: Callable[[], bool]) -> None:
    """What a cluster that is a folder has to tell is only seen by looking."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
