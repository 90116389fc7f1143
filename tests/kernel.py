"""What the kernel of this machine has to give."""

from __future__ import annotations

import os

from vuproc.errors import UringUnavailable
from vuproc.shm.uring import Uring


def has_uring() -> bool:
    """Whether there is io_uring here; says why not."""
    try:
        Uring(1, [0]).close()
    except UringUnavailable as error:
        print(f"no io_uring: {error}")
        return False
    return True


def has_kvm() -> bool:
    """Whether a VMM may use KVM here."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)
