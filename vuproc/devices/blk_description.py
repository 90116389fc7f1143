"""A disk as the master describes it: features, configuration, and where it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc.device import Device
from vuproc.devices.blk_image import Image
from vuproc.devices.blk_options import BlkOptions
from vuproc.devices.blk_storage import new_memory
from vuproc.devices.blk_store import Source
from vuproc.devices.blk_write_area import BOOT_ID
from vuproc.devices.nbd_address import Address
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.sandbox.needs import Needs
from vuproc.spec.blk import CONFIG, SECTOR_SIZE, BlkFeature
from vuproc.spec.virtio import Feature

if TYPE_CHECKING:
    from vuproc.devices.blk_write_files import WriteFiles

MAX_SEGMENT_SIZE = 1 << 20
"""Bytes of one segment that the driver is asked to stay below (size_max)."""
MAX_DISCARD_SECTORS = (1 << 31) // SECTOR_SIZE
"""Sectors of one discarded range: 2 GiB."""
MAX_DISCARD_SEGMENTS = 64
MAX_WRITE_ZEROES_SECTORS = (1 << 25) // SECTOR_SIZE
"""Sectors of one zeroed range: 32 MiB, since some file systems must write them."""
MAX_WRITE_ZEROES_SEGMENTS = 8
PHYSICAL_BLOCK = 4096
"""Bytes a write should be aligned to, as the topology tells the driver."""

_HEADS, _SECTORS_A_TRACK = 16, 63
_MAX_CYLINDERS = 0xFFFF


class BlkDescription(Device):
    """A disk but for its requests."""

    device_id = 2
    options_type = BlkOptions
    options: BlkOptions
    # What blocks is over before a ring can stop, and io_uring is waited for.
    leaves_in_flight = True

    def __init__(self, options: BlkOptions) -> None:
        super().__init__(options)
        self._far: tuple[tuple[str | None, ...], Image | Source | None] | None = None
        if any(getattr(options, name) is not None for name in ("nbd", "rbd", "url", "base")):
            # No vuproc can take over from this one: a server goes on with what it has, and an
            # overlay is one program's.
            self.leaves_in_flight = False  # type: ignore[misc]

    @property
    def _image(self) -> Image | Source | None:
        # By the options of this process: a program's may have been relative when they were made.
        options = self.options
        if options.url is None and options.nbd is None and options.rbd is None:
            return options.the_image()
        # Kept, since what is far away remembers what it was told.
        named = options.url, options.nbd, options.rbd, options.image
        if self._far is None or self._far[0] != named:
            self._far = named, options.the_image()
        return self._far[1]

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker a queue; but one for all if that is a client of a cluster: several would take
        the image's lock from each other.
        """
        if self.options.rbd is None:
            return super().queue_groups()
        return [tuple(range(self.num_queues()))]

    def offered_features(self) -> int:
        """All of the device's features; a read-only disk has none that change it. What the kernel
        has by io_uring is done in its order, not the driver's.
        """
        features = (
            BlkFeature.SIZE_MAX
            | BlkFeature.SEG_MAX
            | BlkFeature.GEOMETRY
            | BlkFeature.BLK_SIZE
            | BlkFeature.FLUSH
            | BlkFeature.TOPOLOGY
            | BlkFeature.CONFIG_WCE
            | BlkFeature.MQ
        )
        if not self._wants_uring:
            features |= Feature.IN_ORDER
        if self.options.readonly:
            features |= BlkFeature.RO
        else:
            features |= BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
        image = self._image
        if image is not None and not isinstance(image, Image):
            features &= ~image.lacking(self.shared)
        return features

    def config_space(self) -> bytes:
        """virtio 1.3, 5.2.4: capacity, limits and topology. Raises OSError if there is no image."""
        block = self.options.block_size
        capacity = self._disk_size() // SECTOR_SIZE
        changeable = not self.options.readonly
        return CONFIG.pack(
            capacity=capacity,
            size_max=MAX_SEGMENT_SIZE,
            # The header and the status take a descriptor each.
            seg_max=max(1, self.options.queue_size - 2),
            cylinders=min(_MAX_CYLINDERS, capacity // (_HEADS * _SECTORS_A_TRACK)),
            heads=_HEADS,
            sectors=_SECTORS_A_TRACK,
            blk_size=block,
            physical_block_exp=(PHYSICAL_BLOCK // block).bit_length() - 1,
            min_io_size=PHYSICAL_BLOCK // block,
            wce=int(self.options.cache == "writeback"),
            num_queues=self.options.queues,
            max_discard_sectors=MAX_DISCARD_SECTORS * changeable,
            max_discard_seg=MAX_DISCARD_SEGMENTS * changeable,
            discard_sector_alignment=block // SECTOR_SIZE * changeable,
            max_write_zeroes_sectors=MAX_WRITE_ZEROES_SECTORS * changeable,
            max_write_zeroes_seg=MAX_WRITE_ZEROES_SEGMENTS * changeable,
            write_zeroes_may_unmap=int(changeable),
        )

    def sandbox_needs(self) -> Needs:
        """io_uring, and the way to what is far away; an image is open already."""
        needs = self.needs.with_more(Needs(io_uring=self._wants_uring))
        if self.options.url is not None:
            needs = needs.with_more(Needs(network=True))
            if self.options.write_back != "off" and self.options.image is not None:
                # The helper opens the overlay once more, for a lock of its own.
                more = Needs(files=(self.options.image,), readable=(BOOT_ID,))
                needs = needs.with_more(more)
            return needs
        if self.options.rbd is not None:
            from vuproc.devices.blk_rbd import RbdSource

            image = self._image
            assert isinstance(image, RbdSource)
            return needs.with_more(image.needs())
        if self.options.nbd is None:
            return needs
        if not Address.of(self.options.nbd).path:
            return needs.with_more(Needs(network=True))
        # Of a server that is another user's.
        return needs.with_more(Needs(network="unix", capabilities=("DAC_OVERRIDE",)))

    def shared_files(self) -> dict[str, Fd]:
        """The image, open and locked, or the memory of a disk in memory. Raises FileRefused."""
        if self._image is not None:
            return self._image.open()
        return {} if self.options.ram is None else {"ram": new_memory(self.options.ram)}

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """With the image that is open if the options name it, whatever is at its path by now."""
        return super().goes_on_with(left) if self._image is None else self._image.adopt(left)

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """The image, if another is at its path."""
        return iter(()) if self._image is None else self._image.replaced(self.shared)

    # Writing back.

    def has_helper(self) -> bool:
        """If changes are to be written back."""
        return self._writing is not None

    def helper_end_s(self) -> float:
        """As the options say."""
        return float(self.options.write_back_end)

    def details(self) -> dict[str, dict[str, str | int]]:
        """How far it is."""
        writing = self._writing
        return {} if writing is None else {"write-back": writing.details(self.shared)}

    def write_back(self) -> int:
        """Have the helper write back now; which question it is. Raises FileRefused."""
        writing = self._writing
        if writing is None:
            raise FileRefused("write_back", "is off: nothing is written back")
        return writing.ask(self.shared)

    def run_helper(self, ending: Fd) -> None:
        """Write back, now and then."""
        from vuproc.devices.blk_layers import Layers

        image = self._image
        assert isinstance(image, Layers) and self.options.write_back != "off"
        image.helper(self.shared, self, ending, float(self.options.write_back))

    @property
    def _writing(self) -> WriteFiles | None:
        if self.options.write_back == "off":
            return None
        from vuproc.devices.blk_layers import Layers

        image = self._image
        return image.writing if isinstance(image, Layers) else None

    @property
    def _wants_uring(self) -> bool:
        engine = self.options.engine
        return engine == "io_uring" or (self.options.direct and engine != "sync")

    def _disk_size(self) -> int:
        """Bytes in whole sectors, as the image is at this moment."""
        size = self.options.ram if self._image is None else self._image.size(self.shared)
        return (size or 0) // SECTOR_SIZE * SECTOR_SIZE
