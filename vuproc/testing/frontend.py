"""A vhost-user front-end: the VMM's end of the control socket, driven by the message table."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.spec.iotlb import IotlbType
from vuproc.spec.vhost_user import (
    FRONT_END,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
)
from vuproc.spec.virtio import Feature
from vuproc.testing import device_state
from vuproc.testing.channel import REPLY_TIMEOUT, BackEndChannel
from vuproc.testing.connection import Connection
from vuproc.testing.dirty import DirtyBitmap
from vuproc.testing.display import DisplayEnd
from vuproc.testing.errors import NoConfigChange, Refused
from vuproc.testing.inflight import InflightRegion
from vuproc.testing.memory import RamRegion
from vuproc.vhost_user.wire import encode

_TIMEVAL = struct.Struct("@ll")


class FrontEnd(Connection):
    """One connection to a back-end.

    path: where it listens, or a connected stream socket, which is owned from then on.
    translates: accept ACCESS_PLATFORM with all else that is offered. guest_addresses: likewise
    GPA_ADDRESSES, and say where memory is in that way.
    Nothing is negotiated by itself: call `negotiate`, or send what you like.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | socket.socket,
        *,
        timeout_s: float = REPLY_TIMEOUT,
        translates: bool = False,
        guest_addresses: bool = False,
    ) -> None:
        super().__init__(path, timeout_s)
        self.translates = translates
        self.guest_addresses = guest_addresses
        self.features = 0
        """Device features acknowledged with SET_FEATURES."""
        self.channel: BackEndChannel | None = None
        """Where the back-end's own messages come in; None before `open_channel`."""

    # What front-ends say.

    def negotiate(
        self,
        features: int | None = None,
        protocol_features: ProtocolFeature | None = None,
        *,
        without: int = 0,
    ) -> None:
        """Own the device and settle both sets of features; None takes all that is offered.

        `without` removes device features. SET_FEATURES comes last, as QEMU has it. LOG_ALL is not
        among those of None: a front-end takes it while it migrates (`log_writes`). Nor are
        ACCESS_PLATFORM and GPA_ADDRESSES, unless the front-end was made for them.
        """
        offered = self.request("GET_FEATURES")["value"]
        if offered & Feature.PROTOCOL_FEATURES:
            there = ProtocolFeature(self.request("GET_PROTOCOL_FEATURES")["value"])
            self.set_protocol_features(
                there & (self._usual_protocol if protocol_features is None else protocol_features)
            )
        self.request("SET_OWNER")
        wanted = self._usual if features is None else features
        self.set_features(offered & wanted & ~int(without))

    @property
    def _usual(self) -> int:
        """The features that are taken if they are offered."""
        return ~int(Feature.LOG_ALL | (0 if self.translates else Feature.ACCESS_PLATFORM))

    @property
    def _usual_protocol(self) -> int:
        return -1 if self.guest_addresses else ~int(ProtocolFeature.GPA_ADDRESSES)

    def set_features(self, features: int) -> None:
        """SET_FEATURES."""
        self.request("SET_FEATURES", value=int(features))
        self.features = int(features)

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """SET_PROTOCOL_FEATURES, without NEED_REPLY, as QEMU has it."""
        self.request("SET_PROTOCOL_FEATURES", need_reply=False, value=int(features))
        self.protocol_features = features

    def set_memory(self, regions: Sequence[RamRegion], *, padding: int = 0) -> None:
        """SET_MEM_TABLE; `padding` bytes follow the regions, as User-Mode Linux has it."""
        row = FRONT_END.named("SET_MEM_TABLE")
        body = row.payload.encode(items=[self._fields(region) for region in regions]) + bytes(
            padding
        )
        self.request("SET_MEM_TABLE", [region.fd for region in regions], payload=body)

    def add_region(self, region: RamRegion) -> None:
        """ADD_MEM_REG."""
        self.request("ADD_MEM_REG", [region.fd], **self._fields(region))

    def remove_region(self, region: RamRegion, *, with_fd: bool = False) -> None:
        """REM_MEM_REG; `with_fd` attaches the region's fd, as libblkio does."""
        self.request("REM_MEM_REG", [region.fd] if with_fd else [], **self._fields(region))

    def _fields(self, region: RamRegion) -> dict[str, Any]:
        if not self.guest_addresses:
            return region.fields
        return {**region.fields, "user_addr": region.guest_addr}

    def set_inflight(self, region: InflightRegion) -> None:
        """SET_INFLIGHT_FD: the records of the rings that start from now on are there."""
        self.request(
            "SET_INFLIGHT_FD",
            [region.fd],
            mmap_size=region.size,
            num_queues=region.queues,
            queue_size=region.queue_size,
        )

    def set_log(self, log: DirtyBitmap) -> None:
        """SET_LOG_BASE: the pages to come are marked in `log` while LOG_ALL is acknowledged."""
        self.request("SET_LOG_BASE", [log.fd], mmap_size=log.size, mmap_offset=log.offset)

    def set_log_call(self, bell: Fd) -> None:
        """SET_LOG_FD: what to signal when pages are marked."""
        self.request("SET_LOG_FD", [bell])

    def log_writes(self, wanted: bool = True) -> None:
        """SET_FEATURES with LOG_ALL, or without, on rings that run, as QEMU has it."""
        features = (
            self.features | Feature.LOG_ALL if wanted else self.features & ~int(Feature.LOG_ALL)
        )
        self.set_features(features)

    def iotlb(
        self, kind: IotlbType, iova: int, size: int, *, user_addr: int = 0, access: int = 0
    ) -> None:
        """IOTLB_MSG: what I/O virtual addresses are, or that they are not that any more. Raises
        Refused.
        """
        answer = self.request(
            "IOTLB_MSG", iova=iova, size=size, user_addr=user_addr, perm=access, type=kind
        )
        if answer["value"]:
            raise Refused("IOTLB_MSG", answer["value"])

    def get_config(self, offset: int = 0, size: int = 256) -> bytes:
        """GET_CONFIG: `size` bytes of config space. An error reply gives b""."""
        answer = self.request("GET_CONFIG", offset=offset, size=size, flags=0, data=bytes(size))
        return bytes(answer.get("data", b""))

    def set_config(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """SET_CONFIG."""
        self.request("SET_CONFIG", offset=offset, flags=flags, data=data)

    def get_status(self) -> int:
        """GET_STATUS: the device status bits."""
        return int(self.request("GET_STATUS")["value"])

    def set_status(self, status: int) -> None:
        """SET_STATUS; 0 resets the device, and nothing is mapped in its shared memory then."""
        self.request("SET_STATUS", value=int(status))
        if status == 0 and self.channel is not None:
            self.channel.regions.clear()

    def save_state(self) -> bytes:
        """The device's own state, once all rings are stopped: SET_DEVICE_STATE_FD with a pipe, and
        CHECK_DEVICE_STATE at its end. Raises Refused, NoReply.
        """
        return device_state.save(self)

    def load_state(self, state: bytes) -> None:
        """Give the device what `save_state` of another gave, likewise."""
        device_state.load(self, state)

    def get_shared_object(self, uuid: UUID) -> Fd | None:
        """GET_SHARED_OBJECT: the object's file, which is the caller's; None if there is none."""
        self.send(encode(FrontendRequest.GET_SHARED_OBJECT, uuid.bytes))
        answer = self.receive("GET_SHARED_OBJECT")
        if len(answer.fds) > 1:
            answer.close()
            raise VuprocError(f"{len(answer.fds)} descriptors came for one object")
        return answer.fds[0] if answer.fds else None

    def get_shmem_config(self) -> dict[int, int]:
        """GET_SHMEM_CONFIG: the size in bytes of each shared memory region that there is, by id.
        The channel maps in them from then on.
        """
        answer = self.request("GET_SHMEM_CONFIG")
        sizes = {region: size for region, size in enumerate(answer["sizes"]) if size}
        if len(sizes) != answer["nregions"]:
            raise VuprocError(f"{answer['nregions']} regions are said, and {len(sizes)} are there")
        if self.channel is not None:
            self.channel.regions.sizes = sizes
        return sizes

    def open_channel(self) -> BackEndChannel:
        """SET_BACKEND_REQ_FD with one end of a new socket pair; returns the other end."""
        ours, theirs = socket.socketpair()
        channel = BackEndChannel(ours)
        with Fd(theirs.detach()) as fd:
            try:
                self.request("SET_BACKEND_REQ_FD", [fd])
            except BaseException:
                channel.close()
                raise
        if self.channel is not None:
            self.channel.close()
        self.channel = channel
        return channel

    def open_display(self) -> DisplayEnd:
        """GPU_SET_SOCKET with one end of a new socket pair; returns the other end, which is the
        caller's.
        """
        ours, theirs = socket.socketpair()
        with Fd(theirs.detach()) as fd:
            try:
                self.request("GPU_SET_SOCKET", [fd])
            except BaseException:
                ours.close()
                raise
        return DisplayEnd(ours)

    def wait_config_change(self, timeout_s: float | None = None, *, size: int = 256) -> bytes:
        """Wait for CONFIG_CHANGE_MSG, as a VMM does, and read the configuration space again.

        The channel must be open. Every announcement is waited for once, one that came before the
        call too; of other messages on the channel, but calls, none is left. Returns `size` bytes,
        zero past the space's end. Raises NoConfigChange, Disconnected, ValueError.
        """
        if self.channel is None:
            raise ValueError("there is no back-end channel: open_channel(), or Guest(channel=True)")
        bound = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + bound
        while True:
            message = self.channel.receive(max(0.0, deadline - time.monotonic()))
            if message is None:
                raise NoConfigChange(bound)
            message.close()
            if message.request == BackendRequest.CONFIG_CHANGE_MSG:
                return self.get_config(0, size)

    def close(self) -> None:
        """Close the connection, without a word, as a VMM that dies."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        super().close()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
