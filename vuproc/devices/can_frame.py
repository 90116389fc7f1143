"""One frame of a CAN bus, and how it stands in guest memory."""

from __future__ import annotations

from dataclasses import dataclass

from vuproc.spec.can import (
    CLASSIC_MAX,
    EXTENDED_ID_MAX,
    FD_MAX,
    RX,
    STANDARD_ID_MAX,
    TX_OUT,
    CanFeature,
    CanFlag,
    CanMessage,
)

_KNOWN = int(CanFlag.EXTENDED | CanFlag.FD | CanFlag.RTR)


@dataclass(frozen=True, slots=True)
class Frame:
    """A data frame, or a remote one, which asks for `length` bytes and has none.

    id: the identifier, of 11 bits, or of 29 if `extended`. data: at most 8 bytes, 64 of a frame of
    CAN FD. Raises ValueError for what no bus could carry.
    """

    id: int
    data: bytes = b""
    extended: bool = False
    fd: bool = False
    remote: bool = False
    length: int = -1
    """Bytes of data; of a remote frame those that it asks for."""

    def __post_init__(self) -> None:
        """Check it."""
        if self.length < 0:
            object.__setattr__(self, "length", len(self.data))
        if not 0 <= self.id <= (EXTENDED_ID_MAX if self.extended else STANDARD_ID_MAX):
            raise ValueError(f"no identifier: {self.id:#x}")
        if self.length > (FD_MAX if self.fd else CLASSIC_MAX):
            raise ValueError(f"{self.length} bytes do not fit into a frame")
        if self.remote and (self.fd or self.data):
            raise ValueError("a remote frame is a classic one without data")
        if not self.remote and self.length != len(self.data):
            raise ValueError(f"{len(self.data)} bytes of data, and a length of {self.length}")

    @property
    def needs(self) -> CanFeature:
        """What the driver must have accepted for such frames."""
        if self.fd:
            return CanFeature.CAN_FD
        if self.remote:
            return CanFeature.CAN_CLASSIC | CanFeature.RTR_FRAMES
        return CanFeature.CAN_CLASSIC

    @classmethod
    def sent(cls, data: bytes) -> Frame:
        """The frame that the driver wants sent, from what it gave to read. Raises ValueError."""
        if len(data) < TX_OUT.size:
            raise ValueError("shorter than its head")
        head = TX_OUT.unpack(data)
        flags, length = head["flags"], head["length"]
        if head["msg_type"] != CanMessage.TX or flags & ~_KNOWN:
            raise ValueError("no frame")
        remote = bool(flags & CanFlag.RTR)
        content = b"" if remote else data[TX_OUT.size :][:length]
        return cls(
            id=head["can_id"],
            data=content,
            extended=bool(flags & CanFlag.EXTENDED),
            fd=bool(flags & CanFlag.FD),
            remote=remote,
            length=length,
        )

    def received(self) -> bytes:
        """What the driver is to find in its buffer."""
        flags = CanFlag(0)
        if self.extended:
            flags |= CanFlag.EXTENDED
        if self.fd:
            flags |= CanFlag.FD
        if self.remote:
            flags |= CanFlag.RTR
        head = RX.pack(msg_type=CanMessage.RX, length=self.length, flags=flags, can_id=self.id)
        # Linux 7.2 wants `length` bytes to be there behind the head of a remote frame, too.
        return head + self.data.ljust(self.length, b"\0")
