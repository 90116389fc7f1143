"""What the master asks of a device: what it is, and which files its workers share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

from vuproc.fd import Fd, HasFileno
from vuproc.options import Options
from vuproc.sandbox.needs import NOTHING, Needs


class DeviceDescription:
    """The part of a `Device` that describes it. Where a worker asks for some of it, too, that is
    said.
    """

    device_id: ClassVar[int]
    """The virtio device id (virtio 1.3, section 5): 1 net, 2 block, 4 entropy, ..."""
    features: ClassVar[int] = 0
    """Device-specific feature bits. vuproc adds those of the ring and of the transport, but
    IN_ORDER, which suits a device that is done with requests in the order in which they came. With
    it a request that is finished before its turn is shown to the driver when those before it are.
    """
    options_type: ClassVar[type[Options]] = Options
    """The struct which the options in the device file become."""
    queues: ClassVar[int | None] = None
    """Number of virtqueues, 1 to 256, if it is the same for every device of the class; None: the
    option `queues` says it. There is no such option if the class does."""
    largest_queue: ClassVar[int | None] = None
    """The same for the option `queue_size`: a power of two, 2 to 32768."""

    needs: ClassVar[Needs] = NOTHING
    """What its workers are to reach once they serve, beside what they have opened in `setup` and
    what is `shared`: files, devices, the network (docs/sandbox.md)."""

    options: Options
    shared: Mapping[str, Fd] = MappingProxyType({})
    """What `shared_files` returned in the master, by name: there from then on, and in a worker from
    before `setup`."""

    def __init__(self, options: Options | None = None) -> None:
        """Keep the options. Stay cheap here, and open nothing: that is for `setup`."""
        self.options = self.options_type() if options is None else options

    def num_queues(self) -> int:
        """Number of virtqueues."""
        return self.options.queues if self.queues is None else self.queues

    def queue_size(self) -> int:
        """Largest size in entries the driver may give a queue: a power of two, 2 to 32768."""
        return self.options.queue_size if self.largest_queue is None else self.largest_queue

    def queue_groups(self) -> list[tuple[int, ...]]:
        """Queues that must share one worker process, because they share state: each queue once.

        The default is a worker a queue.
        """
        return [(queue,) for queue in range(self.num_queues())]

    def offered_features(self) -> int:
        """Device-specific feature bits to offer; the default is the class's `features`."""
        return self.features

    def config_space(self) -> bytes:
        """The device's configuration space, little-endian, at most 4084 bytes, always as many.

        Asked for in the master at the start. The worker of queue 0 asks as well: after each write
        of the driver's, after a reset, and when the device calls `config_changed`. If the answer is
        another than the last, it is what the driver reads from then on: so what the driver wrote
        may decide what it reads next.
        """
        return b""

    def pulls(self, queue: int) -> bool:
        """Whether the device takes requests of `queue` by itself (`take`), instead of being given
        each of them by `handle`: as with buffers to receive into, which are of no use before there
        is something to put there. A device that pulls from all of its queues needs no `handle`.
        """
        return False

    def sandbox_needs(self) -> Needs:
        """The same for these options; the default is the class's `needs`. Called in the master."""
        return self.needs

    def opens_nothing(self) -> bool:
        """Whether a worker opens no file, socket or device by itself, in `setup` or later: what it
        has is in `shared`, or of its own making (memory, eventfds, timers, threads after `setup`).
        Asked for in the master.

        It is then locked in while it waits for its queues, and takes over from one that was killed
        before the kernel has closed what that one had open. Both shorten the wait of a driver. An
        instance may be set up on an empty ring and thrown away, and `setup` may come while another
        worker still serves the queue.
        """
        return False

    def follows_at_once(self) -> bool:
        """Whether a worker may take over from one that was killed before the kernel has closed what
        that one had open, a few milliseconds before. Asked for in the master.

        No instruction of the dead worker is run any more by then, and what it had asked of the
        kernel is done. So all depends on what workers have open for themselves alone: it must not
        be exclusive (a lock of an open file, a name that is bound, a node that only one may open),
        and its close must change nothing that a successor goes by, also if that comes later than
        the successor's `setup`. `shared` files stay open, and are of no concern. The default is
        `opens_nothing`.
        """
        return self.opens_nothing()

    def shared_files(self) -> dict[str, Fd]:
        """Files that all workers are to share, by name. Called in the master, at the start.

        The master owns them from then on and passes each to every worker it starts, a restarted
        one too, where they appear in `shared`. So a memfd given here keeps its content when a
        worker dies: `{"ram": Fd(os.memfd_create("ram"))}`. A file that an option names is opened
        here as well: then all workers have the same file, whatever becomes of its path. Raise
        `FileRefused` for one that cannot be had.
        """
        return {}

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Whether `left`, the shared files of a predecessor, become this device's as they are.

        Called in the master, and `shared_files` only if the answer is False: `left` are closed
        then, and a front-end that relied on them is disconnected. The options may be others by now,
        so let a name say what its file depends on. The default asks for the names and sizes that
        `shared_files` would give.
        """
        fresh = self.shared_files()
        try:
            return _sizes(fresh) == _sizes(left)
        finally:
            for file in fresh.values():
                file.close()

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """Yield (option, what has happened) for each of the `shared` files that is not what the
        option names any more.

        Called in the master, at a reload among others. Such files are opened anew once no front-end
        is connected. Raise `FileRefused` for one that could not be had then.
        """
        return iter(())

    def has_helper(self) -> bool:
        """Whether there is work beside that of the queues: `run_helper` is then called in a process
        of its own, which is started again when it dies. Asked for in the master, at the start.
        """
        return False

    def helper_end_s(self) -> float:
        """Seconds that the helper has at the end of vuproc, once all workers have ended."""
        return 5.0

    def details(self) -> Mapping[str, Mapping[str, str | int]]:
        """What `vuproc status` is to show beside the queues: by subject, names and values.

        Called in the master, whenever somebody asks.
        """
        return {}

    def reloading(self) -> None:
        """A reload begins, whatever it will change: the time to look at what no option and no
        configuration space says, such as the size of something outside.

        Called in the master, of which workers hear by a shared file (an eventfd), if at all.
        """


def _sizes(files: Mapping[str, HasFileno]) -> dict[str, int]:
    return {name: os.fstat(file.fileno()).st_size for name, file in files.items()}
