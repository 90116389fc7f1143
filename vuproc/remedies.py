"""What a user is to do about what a front-end has got wrong, in words for a log."""

from __future__ import annotations

SHARE_MEMORY = (
    "share it with back-ends: QEMU -object memory-backend-memfd,id=mem,size=SIZE,share=on "
    "-numa node,memdev=mem; libvirt <memoryBacking><source type='memfd'/><access mode='shared'/>"
    "</memoryBacking>; Cloud Hypervisor --memory size=SIZE,shared=on; crosvm and User-Mode Linux "
    "need no flag"
)
"""What to do about guest memory that a front-end keeps to itself."""
