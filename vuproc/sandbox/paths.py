"""Files that every program of this kind reads: an interpreter's, a resolver's."""

from __future__ import annotations

import os
import sys

ALWAYS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""Devices of no consequence, read and written."""
SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
"""Shared libraries, and the time zone."""
RESOLVER = (
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
)
"""What names of hosts and certificates take."""


def of_python() -> list[str]:
    """Where this interpreter has its own modules and the installed packages, and we have ours.

    No folder that a path was set to: there may be anything beside the modules in it.
    """
    found = [os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(__file__))]
    for entry in sys.path:
        if os.path.basename(entry) in ("site-packages", "dist-packages"):
            found.append(entry)
    return list(dict.fromkeys(found))
