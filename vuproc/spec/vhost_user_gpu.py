"""The vhost-user-gpu protocol as data: what a device with a display says to the front-end, on the
socket of GPU_SET_SOCKET. Every message is the device's; the front-end only replies.

Source: "Vhost-user-gpu Protocol" in QEMU's documentation; what replies hold is virtio 1.3 section
5.7, little-endian.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from msgspec import Struct

from vuproc.spec.layout import Layout

HEADER = Layout("gpu_header", "=III", "request", "flags", "size")
FLAG_REPLY = 0x4
"""The one flag, of a reply: a request has none."""

SCANOUTS_MAX = 16
CURSOR_SIDE = 64
"""A cursor has so many pixels in width and height."""
PIXEL = 4
"""Bytes of a pixel: x8r8g8b8 of a scanout, a8r8g8b8 of a cursor, in the host's byte order."""
SIDE_MAX = 16384
"""Pixels of a scanout's width or height: QEMU shows no larger one."""


class GpuFeature(IntFlag):
    """What GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES negotiate."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1


_NO_FEATURE = GpuFeature(0)


class GpuRequest(IntEnum):
    """The messages."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    DMABUF_SCANOUT = 9
    DMABUF_UPDATE = 10
    GET_EDID = 11
    DMABUF_SCANOUT2 = 12


U64 = Layout("u64", "=Q", "value")
CURSOR_POS = Layout("gpu_cursor_pos", "=III", "scanout", "x", "y")
CURSOR_UPDATE = Layout(
    "gpu_cursor_update",
    f"=IIIII{CURSOR_SIDE * CURSOR_SIDE * PIXEL}s",
    *("scanout", "x", "y", "hot_x", "hot_y", "image"),
)
SCANOUT = Layout("gpu_scanout", "=III", "scanout", "width", "height")
AREA = Layout("gpu_update", "=IIIII", "scanout", "x", "y", "width", "height")
_DMABUF = ("scanout", "x", "y", "width", "height", "fd_width", "fd_height", "fd_stride")
DMABUF = Layout("gpu_dmabuf_scanout", "=IIIIIIIIIi", *_DMABUF, "fd_flags", "fourcc")
DMABUF2 = Layout("gpu_dmabuf_scanout2", "=IIIIIIIIIiQ", *_DMABUF, "fd_flags", "fourcc", "modifier")
EDID_REQUEST = Layout("gpu_edid_request", "=I", "scanout")

# virtio_gpu_ctrl_hdr (24 bytes) comes before what it says.
DISPLAY = Layout("gpu_display_one", "<IIIIII", "x", "y", "width", "height", "enabled", "flags")
DISPLAY_INFO = Layout("gpu_resp_display_info", f"<24x{SCANOUTS_MAX * DISPLAY.size}s", "displays")
EDID = Layout("gpu_resp_edid", "<24xI4x1024s", "size", "edid")

NOTHING = Layout("nothing", "=")


class GpuMessage(Struct, frozen=True):
    """One row: what it carries, how many descriptors at least and at most, and what is replied.

    `pixels`: so many follow the payload as its width and height say. `reply` None: there is none.
    """

    request: GpuRequest
    payload: Layout = NOTHING
    fds: tuple[int, int] = (0, 0)
    pixels: bool = False
    reply: Layout | None = None
    feature: GpuFeature = _NO_FEATURE


_G = GpuRequest

GPU: dict[GpuRequest, GpuMessage] = {
    row.request: row
    for row in (
        GpuMessage(_G.GET_PROTOCOL_FEATURES, reply=U64),
        GpuMessage(_G.SET_PROTOCOL_FEATURES, U64),
        GpuMessage(_G.GET_DISPLAY_INFO, reply=DISPLAY_INFO),
        GpuMessage(_G.CURSOR_POS, CURSOR_POS),
        GpuMessage(_G.CURSOR_POS_HIDE, CURSOR_POS),
        GpuMessage(_G.CURSOR_UPDATE, CURSOR_UPDATE),
        GpuMessage(_G.SCANOUT, SCANOUT),
        GpuMessage(_G.UPDATE, AREA, pixels=True),
        # Without a descriptor the scanout shows nothing any more.
        GpuMessage(_G.DMABUF_SCANOUT, DMABUF, fds=(0, 1)),
        GpuMessage(_G.DMABUF_UPDATE, AREA, reply=NOTHING),
        GpuMessage(_G.GET_EDID, EDID_REQUEST, reply=EDID, feature=GpuFeature.EDID),
        GpuMessage(_G.DMABUF_SCANOUT2, DMABUF2, fds=(0, 1), feature=GpuFeature.DMABUF2),
    )
}
"""Messages 1 to 12."""
