"""virtio-scsi: disks and CD drives behind one host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from vuproc import shared
from vuproc.device import Device
from vuproc.devices import scsi_state
from vuproc.devices.blk_image import Image
from vuproc.devices.blk_storage import Storage, new_memory
from vuproc.devices.image_lock import unlock
from vuproc.devices.scsi_control import LAYOUT, ONE, Asked, Control, Events, HostState, hush
from vuproc.devices.scsi_options import ScsiOptions
from vuproc.devices.scsi_task import CheckCondition, Failed, Task, fail
from vuproc.devices.scsi_units import Units
from vuproc.errors import FileRefused, RequestFinished
from vuproc.fd import Fd
from vuproc.spec.scsi import (
    CDB_SIZE,
    CONFIG,
    CONTROL,
    EVENT,
    EVENT_INFO,
    FIRST_REQUEST,
    RESPONSE,
    SENSE_SIZE,
    ScsiFeature,
    ScsiResponse,
)
from vuproc.spec.scsi_commands import Key, Sense

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MAX_SECTORS = 0xFFFF
"""Sectors of 512 bytes that a driver is asked to move at a time."""
COMMANDS_PER_UNIT = 128
MIN_CDB, MAX_CDB = 6, 260
"""Bytes of the shortest command, and of the longest (SPC-4, 4.2.3)."""
MAX_SENSE = 252
"""Bytes of the longest sense data (SPC-4, 4.5.1)."""
MOST_AT_ONCE = 16
"""Commands before the worker looks at its other queues, and for orders."""


class Scsi(Device):
    """virtio-scsi: disks and CD drives in raw files, block devices or memory.

    Queue 0 is for control, queue 1 for events, the others are for commands (virtio 1.3, 5.6.2).
    The first three have one worker, each of the others has its own.
    """

    device_id = 8
    options_type = ScsiOptions
    options: ScsiOptions
    leaves_in_flight = True

    def __init__(self, options: ScsiOptions) -> None:
        super().__init__(options)
        self._units: Units | None = None
        self._has_control = False
        """Whether this worker has the control queue."""
        self._asked: dict[int, Asked] = {}
        """The request queues of this worker."""
        self._goes_on: set[int] = set()
        """Queues that are gone on with once the others have had their turn."""
        self._state: HostState | None = None

    @property
    def _sense_size(self) -> int:
        return SENSE_SIZE if self._state is None else int(self._state.sense_size)

    @property
    def _cdb_size(self) -> int:
        return CDB_SIZE if self._state is None else int(self._state.cdb_size)

    @property
    def _shared_state(self) -> HostState:
        assert self._state is not None, "setup was not called"
        return self._state

    def _choose_sizes(self, sense: int, cdb: int) -> None:
        if self._state is not None:
            self._state.sense_size, self._state.cdb_size = sense, cdb

    # What the master asks.

    def num_queues(self) -> int:
        """Those for control and events, and those for commands."""
        return FIRST_REQUEST + self.options.request_queues

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker a request queue; the first one has control and events, too."""
        others = range(FIRST_REQUEST + 1, self.num_queues())
        return [(CONTROL, EVENT, FIRST_REQUEST), *((queue,) for queue in others)]

    def offered_features(self) -> int:
        """Units that come and go, or change."""
        return ScsiFeature.HOTPLUG | ScsiFeature.CHANGE

    def config_space(self) -> bytes:
        """virtio 1.3, 5.6.4."""
        addresses = [self.options.address(place) for place in range(len(self.options.luns))]
        return CONFIG.pack(
            num_queues=self.options.request_queues,
            # The headers of command and answer take a descriptor each.
            seg_max=max(1, self.options.queue_size - 2),
            max_sectors=MAX_SECTORS,
            cmd_per_lun=COMMANDS_PER_UNIT,
            event_info_size=EVENT_INFO.size,
            sense_size=self._sense_size,
            cdb_size=self._cdb_size,
            max_channel=0,
            max_target=max(target for target, _ in addresses),
            max_lun=max(lun for _, lun in addresses),
        )

    def follows_at_once(self) -> bool:
        """Images are shared, and locked by the open file: a worker has copies."""
        return type(self) is Scsi

    def shared_files(self) -> dict[str, Fd]:
        """The images, open and locked, disks in memory, and what is known of each."""
        with shared.gathering() as files:
            state_file = files[self._named("state")] = shared.struct_file(HostState)
            state = shared.struct(HostState, state_file)
            state.sense_size, state.cdb_size = SENSE_SIZE, CDB_SIZE
            for place, unit in enumerate(self.options.luns):
                image = self.options.the_image(place)
                if image is not None:
                    try:
                        files.update(image.open())
                        state.units[place].size = image.size(files)
                    except FileRefused as refused:
                        raise FileRefused("luns", refused.reason) from refused
                elif unit.ram is not None:
                    files[self._named(f"ram{place}")] = new_memory(unit.ram)
                    state.units[place].size = unit.ram
                state.units[place].plugged = place not in self.options.unplugged
                state.units[place].cached = self.options.cache == "writeback"
            for name in self._bells():
                files[name] = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """With the images that are open if the options name them, whatever is at their paths."""
        ours = self._named("state") in left and all(
            image.adopt({name: left[name] for name in image.names & left.keys()})
            for image in self._images()
        )
        if not ours:
            for file in left.values():
                unlock(file)
        return ours

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """Images, if others are at their paths."""
        for image in self._images():
            own = {name: self.shared[name] for name in image.names & self.shared.keys()}
            try:
                for _, what in image.replaced(own):
                    yield "luns", what
            except FileRefused as refused:
                raise FileRefused("luns", refused.reason) from refused

    def reloading(self) -> None:
        """Have the sizes of images looked at."""
        os.write(self.shared[self._named("look")].fileno(), ONE)

    def _images(self) -> Iterator[Image]:
        for place in range(len(self.options.luns)):
            image = self.options.the_image(place)
            if image is not None:
                yield image

    def _named(self, what: str) -> str:
        """A name that says whose units they are: others are not to be gone on with."""
        options = self.options
        units = [(options.address(place), unit) for place, unit in enumerate(options.luns)]
        return shared.named(what, LAYOUT, units, options.request_queues, options.cache)

    def _bells(self) -> list[str]:
        """Names of what wakes a worker: to look at sizes, to finish what a request queue has."""
        queues = range(self.options.request_queues)
        return [self._named("look"), *(self._named(f"bell{queue}") for queue in queues)]

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Make the units, once, and listen for what this queue's worker may be asked."""
        if self._units is None:
            self._state = shared.struct(HostState, self.shared[self._named("state")])
            storages = {place: self._storage(place) for place in range(len(self.options.luns))}
            self._units = Units(self.options, self._state.units, storages)
        if queue == CONTROL:
            self._has_control = True
            names = self._bells()
            bells = [self.shared[name] for name in names[1:]]
            self._control = Control(self, self._units, self._shared_state, bells, self._asked)
            self._events = Events(self, self._units)
            self.watch(self.shared[names[0]], self._look)
            self._look()
            for unit in self._units.plug(self.options.unplugged):
                self.log.info(
                    "lun %d:%d is %s", *unit.address, "there" if unit.state.plugged else "gone"
                )
        elif queue >= FIRST_REQUEST:
            bell = self.shared[self._bells()[1 + queue - FIRST_REQUEST]]
            self._asked[queue] = Asked(self, queue, self._shared_state, bell, self._finish)

    def _storage(self, place: int) -> Storage:
        image = self.options.the_image(place)
        if image is None:
            return Storage(self.shared[self._named(f"ram{place}")].dup())
        return image.storage(self.shared)

    def teardown(self) -> None:
        """Close the units."""
        if self._units is not None:
            self._units.close()

    def pulls(self, queue: int) -> bool:
        """All of them: a function waits for what was posted, and events wait for buffers."""
        return True

    def features_acked(self, features: int) -> None:
        """Which events the driver knows."""
        if self._has_control:
            self._events.features = features
            self._events.tell()

    def config_written(self, offset: int, data: bytes) -> None:
        """Take other sizes of sense data and commands (virtio 1.3, 5.6.4)."""
        before = self.config_space()
        after = before[:offset] + data + before[offset + len(data) :]
        if len(after) != len(before):
            raise ValueError(f"{len(data)} bytes at {offset} are not in the config space")
        said = CONFIG.unpack(after)
        sense, cdb = said["sense_size"], said["cdb_size"]
        if CONFIG.pack(**{**CONFIG.unpack(before), "sense_size": sense, "cdb_size": cdb}) != after:
            raise ValueError("a SCSI host has two fields to write to, sense_size and cdb_size")
        check_sizes(sense, cdb)
        self._choose_sizes(sense, cdb)

    def reset(self) -> None:
        """Sizes, caches and trays as they were at the beginning."""
        self._choose_sizes(SENSE_SIZE, CDB_SIZE)
        for asked in self._asked.values():
            asked.ring(False)
        if self._has_control:
            self._events.features = None
            for unit in self._units or ():
                unit.reset()

    def save_state(self) -> bytes:
        """What the driver has set, and is to be told."""
        return scsi_state.pack(self._sense_size, self._cdb_size, list(self._units or ()))

    def load_state(self, data: bytes, version: int) -> None:
        """Go on with that, if there are the same units here."""
        units = list(self._units or ())
        left = scsi_state.unpack(data, units)
        check_sizes(left.sense_size, left.cdb_size)
        self._choose_sizes(left.sense_size, left.cdb_size)
        scsi_state.go_on(left, units)
        self.config_changed()

    def ring_started(self, queue: int) -> None:
        """What was posted on it may be asked for."""
        if queue in self._asked:
            self._asked[queue].ring(True)

    def ring_stopped(self, queue: int) -> None:
        """Nothing is left of it."""
        if queue in self._asked:
            self._asked[queue].ring(False)

    def ring_stopping(self, queue: int) -> None:
        """Functions that wait come again."""
        if queue == CONTROL:
            self._control.give_back()

    def available(self, queue: int) -> None:
        """Take what there is, but for what has to wait."""
        if queue == EVENT:
            self._events.tell()
            return
        for _ in range(MOST_AT_ONCE):
            if queue == CONTROL and self._control.full:
                return
            request = self.take(queue)
            if request is None:
                return
            if queue == CONTROL:
                self._guarded(request, self._control.serve)
            else:
                self._guarded(request, self._serve)
        # Nobody else says that there is more.
        if queue not in self._goes_on:
            self._goes_on.add(queue)
            self.call_soon(lambda: self._go_on(queue))

    def _go_on(self, queue: int) -> None:
        self._goes_on.discard(queue)
        self.available(queue)

    # Commands.

    def _guarded(self, request: Request, serve: Callable[[Request], None]) -> None:
        """Serve it; whatever goes wrong is the answer of one request."""
        try:
            serve(request)
        except RequestFinished:
            pass  # its ring broke
        except Exception:
            self.log.exception("queue %d: a request has failed", request.queue)
            if not request.finished:
                if request.writable_total >= RESPONSE.size + self._sense_size:
                    fail(request, self._sense_size, ScsiResponse.FAILURE)
                else:
                    request.finish(0)

    def _serve(self, request: Request) -> None:
        if request.writable_total < RESPONSE.size + self._sense_size:
            # Nowhere to put an answer: the driver gets its descriptors back and nothing else.
            self.count_dropped(request.queue)
            request.finish(0)
            return
        try:
            task = Task(request, self._sense_size, self._cdb_size)
            try:
                assert self._units is not None
                self._units.serve(task, lambda: self.publish(request.queue))
            except CheckCondition as condition:
                task.check(condition)
            except OSError as error:
                self.log.error("a command has failed: %s", error)
                task.check(CheckCondition(Key.HARDWARE_ERROR, Sense.INTERNAL_FAILURE))
        except Failed as failed:
            fail(request, self._sense_size, failed.response)

    # What workers ask of each other.

    def _finish(self, queue: int) -> None:
        """Finish what the driver has posted on a request queue of this worker."""
        # No more than that was posted before now.
        for _ in range(self.queue_size()):
            request = self.take(queue)
            if request is None:
                break
            self._guarded(request, self._serve)
        self.publish(queue)

    def _look(self) -> None:
        """Take up the sizes that the images have by now."""
        hush(self.shared[self._named("look")])
        for unit in self._units or ():
            if unit.look():
                self.log.info("lun %d:%d has %d bytes now", *unit.address, unit.state.size)
        self.call_soon(self._events.tell)


def check_sizes(sense: int, cdb: int) -> None:
    """Raises ValueError for sizes that sense data or commands cannot have."""
    if not (MIN_CDB <= cdb <= MAX_CDB and 0 <= sense <= MAX_SENSE):
        raise ValueError(
            f"commands have {MIN_CDB} to {MAX_CDB} bytes, and sense data {MAX_SENSE} at most: "
            f"cdb_size {cdb} and sense_size {sense} are refused"
        )
