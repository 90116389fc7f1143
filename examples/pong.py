"""A network of one host, which answers pings: 10.9.8.1, for a guest of 10.9.8.0/24. A device file:

socket: ./pong.sock
device: {type: ./pong.py:Pong}
"""

import struct

from vuproc.devices.net import Net
from vuproc.devices.net_native import Frames

MAC = bytes.fromhex("525400000001")
ADDRESS = bytes([10, 9, 8, 1])
ARP, IPV4 = b"\x08\x06", b"\x08\x00"
REQUEST, REPLY = b"\0\1", b"\0\2"
ICMP, ECHO = 1, 8


class Pong(Net):
    """virtio-net: what the guest sends comes to `frames`, and answers leave by `send_frames`."""

    def frames(self, pair: int, frames: Frames) -> None:
        """As many as the guest has sent at once."""
        answers = [answer(bytes(frame)) for frame in frames]
        self.send_frames(pair, [each for each in answers if each])


def answer(frame: bytes) -> bytes:
    """What the host says to it; nothing, if that."""
    kind, packet = frame[12:14], frame[14:]
    if kind == ARP and packet[6:8] == REQUEST and packet[24:28] == ADDRESS:
        reply = packet[:6] + REPLY + MAC + ADDRESS + packet[8:18]
    elif kind == IPV4 and packet[9] == ICMP and packet[16:20] == ADDRESS and packet[20] == ECHO:
        # Both ends change places, which leaves the IP header's sum as it is.
        echo = b"\0\0\0\0" + packet[24:]
        reply = packet[:12] + packet[16:20] + packet[12:16] + echo[:2] + checksum(echo) + echo[4:]
    else:
        return b""
    return frame[6:12] + MAC + kind + reply


def checksum(data: bytes) -> bytes:
    """The Internet's (RFC 1071)."""
    words = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
