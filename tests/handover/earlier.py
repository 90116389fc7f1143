"""State files as programs before version 2 of them left them: all in one piece."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Mapping

import msgspec

from vuproc.fd import Fd
from vuproc.handover.session_snapshot import decode
from vuproc.handover.state_file import Applying, Phase, StateFile, StateUnreadable
from vuproc.vhost_user.state import Offer, State

AREA_BYTES = 1 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def whole_session(state: State, version: int = 5) -> tuple[bytes, dict[str, Fd]]:
    """A session's state as version 5 of its snapshot had it, and its descriptors by name."""
    names = {fd: f"{role}.{number}" for number, (fd, role) in enumerate(state.roles().items(), 1)}
    whole = {"version": version, "serial": len(names), "names": [*names.values()], "state": state}
    data = msgspec.msgpack.encode(whole, enc_hook=lambda fd: names[fd])
    return data, {name: fd for fd, name in names.items()}


def earlier_bytes(number: int, phase: Phase, snapshot: bytes, area_bytes: int) -> bytes:
    """A file of version 1 whose last write had this number."""
    encoded = msgspec.msgpack.encode(phase)
    body, begun = encoded + snapshot, phase.begun if isinstance(phase, Applying) else 0
    sizes = len(encoded), len(snapshot)
    area = struct.pack("<QQIIII", number, begun, *sizes, zlib.crc32(body), 0) + body
    head = b"vuproc\0J" + struct.pack("<IIQQ", 1, area_bytes, number, 0)
    empty, full = bytes(area_bytes), area.ljust(area_bytes, b"\0")
    return head + (empty + full if number % 2 else full + empty)


def make_earlier(fd: Fd, offer: Offer, stored: Mapping[str, Fd]) -> Fd | None:
    """What a program of version 1 would have left in place of the state file `fd`, of a session
    whose descriptors are `stored`; None if it would have left nothing.
    """
    state_file = StateFile.open(fd.dup())
    try:
        phase, parts = state_file.read()
    except StateUnreadable:
        return None
    finally:
        state_file.close()
    state, pool = decode(parts, offer, stored.__getitem__, stored.__getitem__)
    names = {known.file: name for name, known in stored.items()}
    session, fds = whole_session(state)
    snapshot = {
        "version": 1,
        "session": session,
        "names": {name: names[fd.file] for name, fd in fds.items()},
        "config": pool.config,
        "kept": pool.kept,
        "records": None if pool.records is None else names[pool.records.file],
        "said": pool.said,
        "objects": pool.objects,
        "made": tuple((uuid, names[file.file]) for uuid, file in pool.made),
        "shmem": pool.shmem,
    }
    earlier = Fd(os.memfd_create("vuproc-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    content = earlier_bytes(1234, phase, msgspec.msgpack.encode(snapshot), AREA_BYTES)
    os.pwrite(earlier.fileno(), content, 0)
    fcntl.fcntl(earlier.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    return earlier
