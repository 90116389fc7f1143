"""What a device's workers may do: its needs, what its device file adds, and what follows."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from vuproc.sandbox.needs import Needs

Mode = Literal["strict", "standard", "off"]

DOCS = "docs/sandbox.md"
"""Where it is explained: for messages."""
HINT = f"; the sandbox may have refused it, see {DOCS}"
ANY_PID = 0x5EEDF11D
"""Stands in a filter for the process that it is to be for."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How the workers of one device lock themselves in. Paths are absolute.

    `strict`: before the device's `setup`; otherwise after it, unless it is `early`.
    """

    strict: bool
    early: bool = False
    """While it waits for its queues, if that can be: nothing of the device's own that is yet to
    come needs more than what is left."""
    needs: Needs
    program: bytes
    """The filter of system calls, with `ANY_PID`; empty: there is none for this machine."""

    @property
    def io_uring(self) -> bool:
        """io_uring acts where no filter looks: a strict worker has blocking calls instead."""
        return self.needs.io_uring and not self.strict


def absolute(needs: Needs, base_dir: str) -> Needs:
    """With paths from `base_dir`, if they are relative."""

    def paths(given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(os.path.normpath(os.path.join(base_dir, path)) for path in given)

    return msgspec.structs.replace(
        needs,
        files=paths(needs.files),
        readable=paths(needs.readable),
        devices=paths(needs.devices),
    )
