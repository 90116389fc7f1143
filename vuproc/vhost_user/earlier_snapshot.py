"""A session's state as programs up to version 5 of the snapshot wrote it: in one piece.

An upgrade finds such a snapshot once: what goes on from it writes parts (`snapshot`). The bytes are
one msgpack map: `version`, `serial`, `names` and `state`, in which every descriptor stands as its
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vuproc.errors import RestoreError
from vuproc.fd import Fd
from vuproc.vhost_user.snapshot import checked, decoded
from vuproc.vhost_user.state import Offer, State

VERSION = 5
"""The last of them. The structures in a `State` are still those of it: whoever changes one has to
say here what becomes of it."""


class _Head(msgspec.Struct, frozen=True):
    """What every version has."""

    version: int


class _Whole(msgspec.Struct, frozen=True):
    state: State


def restore_earlier(offer: Offer, data: bytes, fds: Mapping[str, Fd]) -> State:
    """The state in these bytes, with these descriptors in it, each of which becomes the state's.

    Raises RestoreError if one is missing or is not what its name says, if the bytes are of another
    version or damaged, or if the device is not the same any more.
    """
    version = decoded(data, _Head).version
    if version != VERSION:
        raise RestoreError(f"of version {version}, not {VERSION}")

    def decode(kind: type, value: Any) -> Any:
        if kind is not Fd or value not in fds:
            raise ValueError(f"{value!r} is no descriptor of this session")
        return fds[value]

    state = decoded(data, _Whole, decode).state
    if state.fds() != set(fds.values()):
        raise RestoreError("damaged: its descriptors are not all used")
    return checked(offer, state)
