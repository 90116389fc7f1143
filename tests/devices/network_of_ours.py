"""A network of the test's own: nothing of the machine's is seen or touched."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vuproc.devices.net_pcap import HEADER_BYTES, RECORD_BYTES

CLONE_NEWNET = 0x40000000
SIOCSIFADDR, SIOCSIFNETMASK = 0x8916, 0x891C
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1
ETH_P_ALL = 3
BOUND_S = 30.0


@contextmanager
def network() -> Iterator[None]:
    """What this thread starts and opens meanwhile is in another network; skips without root."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


def bring_up(name: str, address: str | None = None) -> None:
    """Bring an interface up; with an address in a net of 256."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address is not None:
            for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
                where = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, request, struct.pack("16s16s8x", name.encode(), where))
        flags = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
        (now,) = struct.unpack_from("H", flags, 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), now | IFF_UP))


def wire(name: str) -> socket.socket:
    """All frames of an interface, as tcpdump has them."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.bind((name, ETH_P_ALL))
    made.settimeout(BOUND_S)
    return made


def datagram(source: str, target: str, port: int, text: bytes) -> bytes:
    """An IP packet with a datagram, whose checksum is left to whoever passes it on: where it
    belongs is the sum of the pseudo header. The place of `text` is at its end.
    """
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    length = 8 + len(text)
    partial = ~summed(ends + struct.pack("!HH", socket.IPPROTO_UDP, length)) & 0xFFFF
    udp = struct.pack("!HHHH", 5000, port, length, partial) + text
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0)
    return head[:10] + struct.pack("!H", summed(head + ends)) + ends + udp


def summed(data: bytes) -> int:
    """The Internet's checksum of whole words (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def captured(path: Path) -> Iterator[bytes]:
    """The frames of a capture, in order."""
    data, at = path.read_bytes(), HEADER_BYTES
    while at < len(data):
        (count,) = struct.unpack_from("<I", data, at + 8)
        yield data[at + RECORD_BYTES : at + RECORD_BYTES + count]
        at += RECORD_BYTES + count
