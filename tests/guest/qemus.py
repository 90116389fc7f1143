"""Which QEMUs the tests of newer ones run, and the queues that their drivers choose."""

from __future__ import annotations

import os

from vuproc.testing.vms import Qemu

QUEUE_SIZE = 1024
"""Entries of every queue under QEMU 10.0.13, whatever it is told; its largest."""


def newer() -> list[Qemu]:
    """Those after the installed one. Sid changes from day to day: only for who asks for it."""
    asked = any(os.environ.get(name, "") not in ("", "0") for name in ("VUPROC_SID", "VUPROC_LONG"))
    return [Qemu.TRIXIE, Qemu.SID] if asked else [Qemu.TRIXIE]
