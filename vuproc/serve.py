"""Puts together what a device file describes: device, shared files, counters, workers, socket and
master.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vuproc import control, logs
from vuproc.admin import SUFFIX, AdminServer
from vuproc.config import DeviceFile
from vuproc.config_space import ConfigSpace
from vuproc.device import Device
from vuproc.errors import SegmentInUse
from vuproc.fd import Fd
from vuproc.listener import Connector, Inherited, Listener, ListenError, Source
from vuproc.master import Master
from vuproc.operations import Operations
from vuproc.session import Offer
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.segment import Segment, sweep
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.workers.crew import Crew, OnReport
from vuproc.workers.stall import StallWatch
from vuproc.workers.supervise import Forkserver, WorkerProcess, WorkerSetupError

log = logging.getLogger("vuproc.master")

EXIT_OK = 0
EXIT_FAILURE = 1

RING_FEATURES = (
    Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES
)
"""What every device offers for its rings and its transport."""
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""CONFIG is offered by devices without a configuration space too: front-ends such as libblkio ask
for it.
"""


def serve(file: DeviceFile, fd: int | None = None) -> int:
    """Serve the device of `file` until a signal ends it; returns the process's exit code.

    `fd` is an inherited socket, listening or connected, to use instead of the file's.
    """
    logs.set_up(getattr(logging, file.log_level.upper()), file.path.stem)
    device = file.make_device()
    try:
        source = _source(file, fd)
    except ListenError as error:
        log.error("%s", error)
        return EXIT_FAILURE
    shared: dict[str, Fd] = {}
    segment: Segment | None = None
    try:
        shared = _shared(device)
        segment = _counters(file, fd, device.num_queues())
        _serve(file, fd, device, source, shared, segment)
    except (WorkerSetupError, SegmentInUse, ListenError, OSError) as error:
        log.error("%s", error)
        return EXIT_FAILURE
    finally:
        source.close()
        for owner in shared.values():
            owner.close()
        if segment is not None:
            segment.close()
            segment.unlink()
    return EXIT_OK


def _serve(
    file: DeviceFile,
    fd: int | None,
    device: Device,
    source: Source,
    shared: dict[str, Fd],
    segment: Segment,
) -> None:
    forkserver = Forkserver([file.device_type.__module__] if _installed(file) else [])
    prepare = control.Prepare(
        type_ref=file.type_ref,
        base_dir=str(file.base_dir),
        options=msgspec.msgpack.encode(file.options),
        chain_limit=device.queue_size(),
        counters=segment.name,
        shared=tuple(shared),
        log_level=logging.getLogger("vuproc").level,
    )

    def start(on_report: OnReport) -> WorkerProcess:
        return WorkerProcess(forkserver, prepare, list(shared.values()), on_report)

    config = ConfigSpace(device.config_space)
    counters = [QueueCounters(segment, queue) for queue in range(device.num_queues())]

    def work(queues: tuple[int, ...]) -> int:
        return sum(counters[queue].snapshot().requests for queue in queues)

    def make_crew(master: Master) -> Crew:
        return Crew(
            start,
            file.workers,
            config,
            queue_size=device.queue_size(),
            work=work,
            replay=master.replay,
            on_broken=master.ring_broken,
        )

    offer = Offer(
        features=int(RING_FEATURES) | device.offered_features(),
        protocol_features=int(PROTOCOL_FEATURES),
        num_queues=device.num_queues(),
        queue_size=device.queue_size(),
        config_size=len(config),
    )
    master = Master(source, offer, make_crew, exit_on_disconnect=file.exit_on_disconnect)
    snapshots = [counter.snapshot for counter in counters]
    master.add_chore(StallWatch(file.stall_timeout, master.crew, lambda queue: snapshots[queue]()))
    if fd is None:  # an inherited descriptor has no place beside which an admin socket could be
        operations = Operations(file.type_ref, master, counters)
        path = Path(f"{file.socket.path}{SUFFIX}")
        master.add_chore(AdminServer(path, master.selector, operations.verbs()))
    try:
        master.run(lambda: log.info("serving %s, %s", file.type_ref, _summary(file.workers)))
    finally:
        for counter in counters:
            counter.release()


def _summary(groups: Sequence[tuple[int, ...]]) -> str:
    queues = sum(len(group) for group in groups)
    return f"{queues} queue{'s' * (queues > 1)} in {len(groups)} worker{'s' * (len(groups) > 1)}"


def _installed(file: DeviceFile) -> bool:
    """The device's module can be imported by name in the forkserver, so that workers need not."""
    return not file.device_type.__module__.startswith("vuproc_file_")


def _source(file: DeviceFile, fd: int | None) -> Source:
    if fd is not None:
        return Inherited(fd)
    path = Path(file.socket.path)
    if file.socket.mode == "client":
        return Connector(path)
    return Listener(path, file.socket.permissions)


def _shared(device: Device) -> dict[str, Fd]:
    """The device's shared files as descriptors of our own."""
    owners: dict[str, Fd] = {}
    for name, shared in device.shared_files().items():
        owners[name] = Fd(os.dup(shared.fileno()))
        shared.close()
    return owners


def _counters(file: DeviceFile, fd: int | None, queues: int) -> Segment:
    """The segment of the counters, named after the socket so that the next start replaces a crashed
    one's.
    """
    sweep()
    key = f"fd:{os.getpid()}:{fd}" if fd is not None else f"{file.socket.mode}:{file.socket.path}"
    name = f"/vuproc.{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return Segment.create(name, block_bytes(queues))
