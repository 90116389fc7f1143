"""A container engine's seccomp profile, with what vuproc uses and the profile refuses:

    python3 seccomp.py < /usr/share/containers/seccomp.json > vuproc.json
    podman run --security-opt seccomp=vuproc.json ...

Everything else stays as the engine's authors have it. Without these calls vuproc serves, too: with
system calls in io_uring's place, and with less of its own sandbox.
"""

from __future__ import annotations

import json
import sys
from typing import Any

CALLS = (
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "unshare",
)
"""The last one is for the user namespace of a worker."""


def widened(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile, with a rule of its own in front that allows the calls."""
    rule = {"names": list(CALLS), "action": "SCMP_ACT_ALLOW", "args": []}
    return {**profile, "syscalls": [rule, *_without(profile["syscalls"])]}


def _without(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules that refuse one of the calls, without it."""
    kept = []
    for rule in rules:
        names = [name for name in rule.get("names", ()) if name not in CALLS]
        if rule["action"] == "SCMP_ACT_ALLOW" or len(names) == len(rule.get("names", ())):
            kept.append(rule)
        elif names:
            kept.append({**rule, "names": names})
    return kept


if __name__ == "__main__":
    json.dump(widened(json.load(sys.stdin)), sys.stdout, indent=1)
    print()
