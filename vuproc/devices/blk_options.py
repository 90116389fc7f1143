"""The options of virtio-blk, and what they say is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta

from vuproc.devices.blk_image import Image
from vuproc.options import FilePath, Options, Size
from vuproc.spec.blk import ID_BYTES, SECTOR_SIZE

if TYPE_CHECKING:
    from vuproc.devices.blk_store import Source

MAX_RAM = 1 << 44
"""Bytes of the largest disk in memory: 16 TiB, what a tmpfs file may have on x86-64."""

MAX_INTERVAL_S = 86400

_STORES = ("image", "base", "url", "nbd", "rbd", "ram")
_EXCLUDED = {
    "ram": ("image", "base", "url", "nbd", "rbd"),
    "rbd": ("image", "base", "url", "nbd"),
    "nbd": ("image", "base", "url"),
    "url": ("base",),
}


class BlkOptions(Options, kw_only=True):
    """The options of `type: blk`. One of image, base, url, nbd, rbd and ram is needed."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "oneOf": [
            {"required": ["ram"]},
            {"required": ["nbd"]},
            {"required": ["rbd"]},
            {"required": ["url"]},
            {"required": ["base"]},
            {
                "required": ["image"],
                "not": {"anyOf": [{"required": ["url"]}, {"required": ["base"]}]},
            },
        ]
    }
    live: ClassVar[frozenset[str]] = Options.live | {"serial", "cache"}
    kept_in: ClassVar[tuple[str, ...]] = ("rbd",)

    image: Annotated[FilePath, Meta(description="A raw file or a block device.")] | None = None
    base: (
        Annotated[
            FilePath,
            Meta(
                description="A raw file or a block device that is only read: what the guest "
                "writes goes to an overlay, the file at image, which is made if there is none; "
                "without image it is forgotten at the end."
            ),
        ]
        | None
    ) = None
    url: (
        Annotated[
            str,
            Meta(
                description="A raw image in an object store or on a web server (s3, gs, az, https "
                "or http), or an image in pieces there, whose URL ends in a slash, as a base: what "
                "is read of it and what the guest writes is kept in the overlay."
            ),
        ]
        | None
    ) = None
    write_back: Annotated[
        Literal["off"] | Annotated[int, Meta(ge=1, le=MAX_INTERVAL_S)],
        Meta(
            description="How often what the guest has written goes from the overlay to the image "
            "in pieces at url, in seconds; off: never."
        ),
    ] = "off"
    write_back_end: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_INTERVAL_S,
            description="Seconds that the end of vuproc may take for what is not written back yet; "
            "what is left then stays in the overlay, for the next start.",
        ),
    ] = 30
    nbd: (
        Annotated[
            str,
            Meta(
                description="An export of an NBD server: nbd://HOST[:PORT]/EXPORT or "
                "nbd+unix:///EXPORT?socket=PATH."
            ),
        ]
        | None
    ) = None
    rbd: (
        Annotated[
            str,
            Meta(
                description="An image of a Ceph cluster (RBD): POOL/[NAMESPACE/]IMAGE, or a "
                "snapshot of one, with @SNAPSHOT."
            ),
        ]
        | None
    ) = None
    rbd_user: Annotated[
        str, Meta(description="The cluster's user, as NAME of client.NAME; Ceph's own is admin.")
    ] = ""
    rbd_conf: (
        Annotated[
            FilePath,
            Meta(description="The ceph.conf; Ceph's own is /etc/ceph/ceph.conf, or CEPH_CONF."),
        ]
        | None
    ) = None
    ram: (
        Annotated[
            Size,
            Meta(
                ge=SECTOR_SIZE,
                le=MAX_RAM,
                multiple_of=SECTOR_SIZE,
                description="A disk in memory, of this size, empty at each start.",
            ),
        ]
        | None
    ) = None
    readonly: Annotated[bool, Meta(description="Refuse to change anything.")] = False
    serial: Annotated[
        str,
        Meta(
            max_length=ID_BYTES,
            pattern=r"^[\x20-\x7e]*$",
            description="Serial number the guest sees, at most 20 ASCII characters.",
        ),
    ] = ""
    block_size: Annotated[
        Literal[512, 1024, 2048, 4096], Meta(description="Logical block size in bytes.")
    ] = 512
    cache: Annotated[
        Literal["writeback", "writethrough"],
        Meta(
            description="writeback: data is safe once the driver has flushed. writethrough: data "
            "is safe once written. The driver may switch."
        ),
    ] = "writeback"

    direct: Annotated[
        bool, Meta(description="Read and write the image past the page cache (O_DIRECT).")
    ] = False
    engine: Annotated[
        Literal["auto", "map", "sync", "io_uring", "python"],
        Meta(
            description="What moves the data: copies between the mapped image and guest memory "
            "(map), blocking calls (sync) or io_uring, all of them native code, or the handler in "
            "Python. auto takes the fastest that suits the image: map for one in memory, io_uring "
            "for a direct one. Where there is no io_uring, blocking calls are used."
        ),
    ] = "auto"
    locking: Annotated[
        Literal["auto", "off"],
        Meta(
            description="auto: lock the image as QEMU does, so that no two programs write to it, "
            "where its file system has locks. off: leave that to whoever set this up."
        ),
    ] = "auto"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is one store, and that it can be had."""
        yield from super().problems()
        if not any(getattr(self, name) is not None for name in _STORES):
            yield "", f"blk needs {', '.join(_STORES[:-1])} or {_STORES[-1]}"
        for option, others in _EXCLUDED.items():
            for other in others:
                if getattr(self, option) is not None and getattr(self, other) is not None:
                    yield option, f"{other} and {option} exclude each other"
        if self.direct and self.image is None and self.base is None and self.url is None:
            yield "direct", "direct is for an image"
        if self.engine == "map" and self.direct:
            yield "engine", "a mapped image is not direct"
        if self.base is not None or self.url is not None:
            yield from self._problems_over_a_base()
        far = self.nbd is not None or self.rbd is not None
        if far and self.engine not in ("auto", "python"):
            yield "engine", f"{self.engine} is for an image, not for what a server has"
        if self.rbd is None:
            for option, value in (("rbd_user", self.rbd_user), ("rbd_conf", self.rbd_conf)):
                if value:
                    yield option, f"{option} is for rbd"
        if self.write_back != "off":
            yield from self._problems_of_writing_back()
        image = self.the_image()
        if image is not None:
            yield from image.problems(self.block_size)
        if self.ram is not None and self.ram % self.block_size:
            yield "ram", f"{self.ram} bytes are not a multiple of the block size {self.block_size}"

    def _problems_over_a_base(self) -> Iterator[tuple[str, str]]:
        if self.readonly and self.base is not None:
            yield "readonly", "a base is only read anyway; give it as the image to refuse writes"
        if self.direct:
            yield "direct", "direct is for an image without a base"
        if self.engine not in ("auto", "python"):
            yield "engine", f"{self.engine} is for an image alone, and what has a base is not"

    def _problems_of_writing_back(self) -> Iterator[tuple[str, str]]:
        if self.url is None or not self.url.endswith("/"):
            yield (
                "write_back",
                "is for an image in pieces, whose url ends in a slash",
            )
        elif self.image is None:
            yield "write_back", "needs image, a file that keeps what is not written back yet"
        if self.readonly:
            yield "write_back", "there is nothing to write back of what is read-only"

    def the_image(self) -> Image | Source | None:
        """The image that these options name, or where else the disk is; None for one in memory."""
        # Imported by those that want them: a worker's start is mostly imports.
        if self.nbd is not None:
            from vuproc.devices.blk_nbd_source import NbdSource

            return NbdSource(
                self.nbd,
                readonly=self.readonly,
                queues=self.queues,
                block_size=self.block_size,
            )
        locking = self.locking != "off"
        if self.rbd is not None:
            from vuproc.devices.blk_rbd import RbdSource

            return RbdSource(
                self.rbd,
                user=self.rbd_user,
                conf=self.rbd_conf or "",
                readonly=self.readonly,
                locking=locking,
                block_size=self.block_size,
            )
        if self.base is not None:
            from vuproc.devices.blk_layers import Layers

            base = Image(self.base, readonly=True, locking=locking, option="base")
            return Layers(base, self.image)
        if self.url is not None:
            from vuproc.devices.blk_layers import Layers

            if self.url.endswith("/"):
                from vuproc.devices.blk_pieces import PiecesBase

                back = self.write_back != "off" and self.image is not None and not self.readonly
                return Layers(PiecesBase(self.url, writes_back=back), self.image)
            from vuproc.devices.blk_objects import ObjectBase

            return Layers(ObjectBase(self.url), self.image)
        if self.image is None:
            return None
        return Image(
            self.image,
            readonly=self.readonly,
            direct=self.direct,
            locking=locking,
        )
