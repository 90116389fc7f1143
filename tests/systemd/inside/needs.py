"""Devices that need more than files and sockets, with the drop-ins that are shipped for them."""

from __future__ import annotations

import contextlib
import fcntl
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.devices.fuse_driver import Fuse
from tests.systemd.inside.disks import (
    ETC,
    RUN,
    disk,
    driver,
    reads_and_writes,
    socket_of,
    status,
)
from tests.systemd.inside.manager import ctl, dropped_in, refused, texts
from vuproc.shared import IFREQ
from vuproc.spec.fuse import ROOT, SetattrValid
from vuproc.testing.guest import Guest

DROP_INS = Path("/etc/systemd/system/drop-ins")
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""Linux, sockios.h and if.h."""
NET = "socket: {run}/tapped.sock\ndevice:\n  type: net\n  backend: tap\n  interface: tap7\n"
FS = """socket: {run}/served.sock
device:
  type: fs
  tag: share
  directory: {folder}
  readonly: false
"""
OWNERS = SetattrValid.UID | SetattrValid.GID


@contextlib.contextmanager
def refused_as_shipped(path: Path, unit: str, reason: str, conf: str) -> Iterator[None]:
    """A unit does not start, for that reason; and is started with the drop-in. Its device file is
    gone afterwards.
    """
    try:
        refused("start", unit)
        assert any(reason in line for line in texts(unit)), texts(unit)
        ctl("stop", unit)
        with dropped_in(unit, (DROP_INS / conf).read_text()):
            try:
                ctl("start", unit)
                yield
            finally:
                ctl("stop", unit)
    finally:
        path.unlink()


def step_tap() -> None:
    """Refused as shipped, and a frame passes with the drop-in."""
    path = ETC / "tapped.yaml"
    path.write_text(NET.format(run=RUN))
    unit = "vuproc@tapped.service"
    with refused_as_shipped(path, unit, "/dev/net/tun: no such file", "tap.conf"):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as wire:
            fcntl.ioctl(wire, SIOCSIFFLAGS, IFREQ.pack(b"tap7", IFF_UP))
            wire.bind(("tap7", 0))
            wire.settimeout(20.0)
            with Guest(RUN / "tapped.sock", queues=2) as guest:
                frame = bytes(6 * [0xFF]) + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + b"hello" * 12
                guest.do(1, [bytes(12) + frame])
                assert wire.recv(2048) == frame
    assert not [line for line in texts(unit) if "sandbox" in line], texts(unit)


def step_network() -> None:
    """Metrics by TCP, on the machine's own network."""
    conf = (DROP_INS / "network.conf").read_text()
    with disk("measured", extra="metrics: 127.0.0.1:9919\n", conf=conf):
        with socket.create_connection(("127.0.0.1", 9919), 20.0) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        assert b"vuproc_" in answer
        with driver("measured") as guest:
            reads_and_writes(guest)


def step_file_server() -> None:
    """A guest makes files of any user, with any mode, and pipes: with the drop-in. As shipped the
    service has no openat2, which RestrictSUIDSGID= takes away with ENOSYS.
    """
    folder = Path("/srv/shared")
    folder.mkdir()
    path = ETC / "served.yaml"
    path.write_text(FS.format(run=RUN, folder=folder))
    unit = "vuproc@served.service"
    with refused_as_shipped(path, unit, "RestrictSUIDSGID", "file-server.conf"):
        assert status("served")["sandbox_lacks"] == []
        with Guest(RUN / "served.sock", queues=2) as guest:
            mounted = Fuse(guest)
            node, _ = mounted.create(ROOT, "given")
            mounted.setattr(node, valid=OWNERS, uid=1234, gid=4321)
            mounted.setattr(node, valid=SetattrValid.MODE, mode=stat.S_IFREG | 0o4755)
            mounted.mknod(ROOT, "pipe", stat.S_IFIFO | 0o600)
        found = (folder / "given").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 4321, 0o4755), found
        assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


def step_users() -> None:
    """Two services of two users, beside one of root's: each has its own, and goes on."""
    conf = (DROP_INS / "user.conf").read_text()
    with disk("rooted") as rooted:
        with (
            disk("vmms", conf=conf.replace("libvirt-qemu", "vmm"), owner="vmm") as first,
            disk("disks", conf=conf.replace("libvirt-qemu", "disks"), owner="disks") as second,
        ):
            for name, user in (("vmms", "vmm"), ("disks", "disks"), ("rooted", "root")):
                assert socket_of(name).stat().st_uid == pwd.getpwnam(user).pw_uid, name
            for name, unit in (("vmms", first), ("disks", second), ("rooted", rooted)):
                assert status(name)["sandbox_lacks"] == []
                with driver(name) as guest:
                    reads_and_writes(guest)
                    ctl("restart", unit)
                    reads_and_writes(guest)
