"""The user and the group that a socket is given, by name or number."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Iterator

from vuproc.device_file.model import Socket

AS_MADE = -1
"""Stands for a user or group that nobody has named: what the system gives to the file."""
_CAP_CHOWN = 1 << 0


def ids(socket: Socket) -> tuple[int, int]:
    """The numbers of user and group, or AS_MADE. Raises OSError if there is no such name."""
    return (
        AS_MADE if socket.owner is None else _user(socket.owner),
        AS_MADE if socket.group is None else _group(socket.group),
    )


def ids_after(before: Socket, after: Socket) -> tuple[int, int]:
    """The same for a socket that was made as `before` said: what is named no more is ours again."""
    user, group = ids(after)
    if after.owner is None and before.owner is not None:
        user = os.geteuid()
    if after.group is None and before.group is not None:
        group = os.getegid()
    return user, group


def owner_problems(socket: Socket) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what this process cannot give the socket."""
    named = [key for key in ("owner", "group") if getattr(socket, key) is not None]
    if socket.mode == "client":
        for key in named:
            yield key, "in client mode the VMM makes the socket"
        return
    for key in named:
        try:
            problem = (
                _owner_problem(socket.owner) if key == "owner" else _group_problem(socket.group)
            )
        except OSError as error:
            problem = error.strerror
        if problem is not None:
            yield key, problem


def _owner_problem(owner: str | int | None) -> str | None:
    if owner is None or _user(owner) == os.geteuid() or _may_chown():
        return None
    return "root alone can give the socket to another user (CAP_CHOWN); to a group, its members can"


def _group_problem(group: str | int | None) -> str | None:
    if group is None or _group(group) in (os.getegid(), *os.getgroups()) or _may_chown():
        return None
    return "root alone can give the socket to a group without being in it (CAP_CHOWN)"


def _user(user: str | int) -> int:
    try:
        return user if isinstance(user, int) else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no user {user} here") from None


def _group(group: str | int) -> int:
    try:
        return group if isinstance(group, int) else grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no group {group} here") from None


def _may_chown() -> bool:
    """Whether this process may give files away, which root in a container or a service may not."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) & _CAP_CHOWN)
    except OSError:
        return True  # that there is no /proc is said elsewhere; the start will tell
    return False
