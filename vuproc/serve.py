"""Puts together what a device file describes: device, shared files, counters, workers, socket and
master.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.structs import replace

from vuproc import device_object, events, host, inquiries, logs, open_files
from vuproc.chores import Meanwhile
from vuproc.device import Device
from vuproc.device_file import imported
from vuproc.device_file.check import DeviceFile
from vuproc.device_file.owner import ids
from vuproc.device_file.sandboxed import XEN_DEVICES, policy_of
from vuproc.display import DisplayDevice
from vuproc.errors import (
    ConfigErrors,
    HostLacks,
    in_words,
)
from vuproc.events import Ready, Stopped
from vuproc.fd import Fd
from vuproc.garbage import Garbage
from vuproc.handover.device_counters import DeviceCounters
from vuproc.handover.fd_store import (
    ADMIN,
    ADMIN_LOCK,
    CHANNEL,
    DEVICE_FILE,
    LISTENER,
    LOCK,
    WORKER,
    FdStore,
)
from vuproc.handover.making_way import make_way
from vuproc.handover.sd_notify import InheritError, Notifier, inherit
from vuproc.handover.shared_files import SharedFiles
from vuproc.handover.upgrade import Again, Trial, become
from vuproc.listener import AS_IT_IS, Connector, Inherited, Listener, Source
from vuproc.mapping import regions_of
from vuproc.master import Master
from vuproc.ops.admin import PERMISSIONS, AdminServer
from vuproc.ops.metrics_address import listen
from vuproc.ops.metrics_server import MetricsServer
from vuproc.ops.observation import Observation
from vuproc.ops.operations import Operations
from vuproc.ops.reload import IN_POSTCOPY, Reloader
from vuproc.ops.trace_file import TraceFile
from vuproc.poll_set import PollSet
from vuproc.pool.forkserver import Forkserver
from vuproc.pool.limits_file import LimitsFile
from vuproc.pool.orphans import ZombieReaper, channel_name, retire
from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import WorkerHost, WorkerProcess
from vuproc.pool.starts import OnReport
from vuproc.pool.watchdog import Watchdog
from vuproc.program.link import ProgramLink
from vuproc.program.refusals import explain, refusal_of
from vuproc.sandbox.master_lock import lock_master
from vuproc.sandbox.policy import DOCS
from vuproc.shm.segment import sweep
from vuproc.signals import Signals
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.unix_path import ADMIN_SUFFIX
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.vhost_user.hooks import protocol_features_of
from vuproc.vhost_user.session import Offer
from vuproc.workers import control

log = logging.getLogger("vuproc.master")

EXIT_OK = 0
EXIT_FAILURE = 1

RING_FEATURES = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.RING_PACKED
    | Feature.PROTOCOL_FEATURES
    | Feature.LOG_ALL
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
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.GPA_ADDRESSES
)
"""What every device offers, but CONFIG for one without a configuration space: QEMU has no use for
it there, and warns.
"""


def serve(
    file: DeviceFile,
    fd: int | None = None,
    again: Again | None = None,
    *,
    program: ProgramLink | None = None,
    left: Mapping[str, tuple[Fd, ...]] | None = None,
    forkserver: Forkserver | None = None,
    standby: bool = True,
    checked: bool = False,
    worker_waits: bool = True,
) -> int:
    """Serve the device of `file` until a signal ends it; returns the process's exit code.

    `fd` is an inherited socket, listening or connected, to use instead of the file's. `again` is
    how to start this program once more, for upgrades and reloads; there are none without. `program`
    has started this process for a device of its own, and hears of what happens and why it ended.
    `left` is what a predecessor has left, if that was looked for already, and `forkserver` one that
    was launched ahead, and is ours. `standby`: a keeper is to have a standby master. `checked`: the
    machine has what it takes. `worker_waits`: there is always to be a worker in waiting.
    """
    forkserver = forkserver or Forkserver()
    zombies = ZombieReaper(() if forkserver.pid is None else (forkserver.pid,))
    level = getattr(logging, file.keys.log_level.upper())
    try:
        if not checked:
            host.check()
        left = inherit() if left is None else left
    except (HostLacks, InheritError) as error:
        logs.set_up(level, file.path.stem, file.keys.log_format)
        log.error("%s", error)
        if program is not None:
            program.refuse(refusal_of(error))
        return EXIT_FAILURE
    # Not before: it opens a descriptor, which must not be taken for an inherited one.
    output = logs.set_up(level, file.path.stem, file.keys.log_format)
    for shortcoming in host.shortcomings():
        log.warning("%s", shortcoming)
    fd_store = FdStore(Notifier.from_environment(), left)
    try:
        with Signals() as signals, ExitStack() as stack:
            stack.callback(fd_store.close)
            try:
                service = _Service(
                    file,
                    fd,
                    again,
                    fd_store,
                    zombies,
                    signals,
                    stack,
                    output,
                    program,
                    forkserver,
                    standby,
                    worker_waits,
                )
                service.run()
            except Exception as error:
                if fd_store.has_successor:
                    _die(error)
                raise
            fd_store.clear()
    except ConfigErrors:
        raise  # the command line prints them, as those of `vuproc check`
    except Exception as error:
        explain(error)
        if program is not None and not program.ready:
            program.refuse(refusal_of(error))
        events.announce(Stopped(reason=events.shown(in_words(error)), code=EXIT_FAILURE))
        return EXIT_FAILURE
    events.announce(Stopped(reason=events.shown(service.master.stopped_by)))
    return EXIT_OK


def _die(error: Exception) -> NoReturn:
    """End like one that is killed: whoever comes after us goes on from what is stored."""
    explain(error)
    os._exit(EXIT_FAILURE)


class _Service:
    """One device with all that it needs; `stack` takes it apart."""

    def __init__(
        self,
        file: DeviceFile,
        fd: int | None,
        again: Again | None,
        fd_store: FdStore,
        zombies: ZombieReaper,
        signals: Signals,
        stack: ExitStack,
        output: logs.Log,
        program: ProgramLink | None,
        forkserver: Forkserver,
        standby: bool,
        worker_waits: bool,
    ) -> None:
        self._file = file
        self._standby = standby
        forkserver.locked = file.keys.sandboxed().mode != "off"
        lacks = lock_master() if forkserver.locked else []
        for lack in lacks:
            log.warning("sandbox: without %s; see %s", lack, DOCS)
        self._program = program
        self._fd_store = fd_store
        self._again = again
        self._signals = signals
        device = file.make_device()
        open_files.make_room(device.num_queues())
        forkserver.allow_files()
        source = self._source(fd, stack)
        stack.callback(source.close)
        self._shared = SharedFiles(device, fd_store, stack, file.open_shared)
        self._counters = _counters(file, fd, device.num_queues(), fd_store)
        stack.callback(self._counters.close)
        counters = self._counters.of_workers
        self._traces = TraceFile(device.num_queues(), file.options.trace, fd_store)
        stack.callback(self._traces.close)
        forkserver.imports(_preloaded(file), file.keys.hook_timeout)
        stack.callback(forkserver.close)
        polls = PollSet()
        forkserver.wait = polls.wait_readable
        self._host = WorkerHost(
            forkserver,
            on_command=lambda queue: counters[queue].count_command(),
            hooks=lambda queue: counters[queue].hooks(),
            hook_timeout=file.keys.hook_timeout,
            wait=polls.wait_readable,
        )
        self._device = device
        self._pickled: Fd | None = None
        stack.callback(self._forget_pickled)
        self._limits = LimitsFile()
        stack.callback(self._limits.close)
        self._prepare = self._prepared(file, device)
        fd_store.keep_content(DEVICE_FILE, file.content)
        config = ConfigSpace(device.config_space)

        pool = WorkerPool(
            self._start_worker,
            file.workers,
            config,
            queue_size=device.queue_size(),
            work=lambda queues: sum(counters[queue].requests() for queue in queues),
            has_standby=worker_waits,
        )
        for slot in pool.slots:
            slot.overlaps = lambda: self._device.follows_at_once()
        pool.slots.sets_up_ahead = lambda: self._device.opens_nothing()
        if device.has_helper():
            pool.slots.add_helper(device.helper_end_s())
        pool.history.objects.files = lambda: self._shared.fds
        pool.history.shmem.sizes = regions_of(device)
        offer = Offer(
            features=_ring_features(file) | device.offered_features(),
            protocol_features=_protocol_features(file, device, len(config)),
            num_queues=device.num_queues(),
            queue_size=device.queue_size(),
            config_size=len(config),
            shared_memory=regions_of(device),
            display=isinstance(device, DisplayDevice),
        )
        self.master = master = Master(
            source,
            offer,
            pool,
            fd_store,
            signals,
            polls,
            exit_on_disconnect=file.keys.exit_on_disconnect,
        )
        self._host.in_postcopy = lambda: (
            master.pool.history.in_postcopy and master.front_end_is_there
        )
        master.on_cut = forkserver.kill
        stack.callback(master.close)
        master.add_chore(output)
        master.add_chore(fd_store)
        master.add_chore(zombies)
        stall = Watchdog(file.keys.stall_timeout, file.keys.hook_timeout, master.pool, counters)
        master.watch_by(stall)
        operations = Operations(
            file.type_ref,
            master,
            self._counters,
            fd_store.notifier.keeper,
            lambda: self._device,
        )
        operations.sandbox = lambda: self._file.keys.sandboxed().mode
        operations.master_lacks = lacks
        observation = Observation(
            file.path.stem,
            file.type_ref,
            master,
            self._counters,
            self._traces,
            lambda: self._shared.fds,
            operations.state_of,
        )
        master.add_chore(observation)
        if again is not None and (fd is None or program is not None):
            self._offer_reloads(again, operations, file, device, config, stall, fd is None)
        verbs = {**operations.verbs(), **observation.verbs()}
        if file.keys.metrics is not None:
            where = listen(file.keys.metrics, fd_store, self._listener)
            master.add_chore(MetricsServer(where, master.selector, observation.page))
        if program is not None:
            program.attach(master.selector, verbs)
            master.add_chore(program)
        if fd is None:  # an inherited descriptor has no place beside which an admin socket could be
            beside = Path(f"{file.socket.path}{ADMIN_SUFFIX}")
            listener = self._listener(beside, PERMISSIONS, (ADMIN, ADMIN_LOCK))
            try:
                master.add_chore(AdminServer(listener, master.selector, verbs, Meanwhile))
            except BaseException:
                listener.close()
                raise
        master.add_chore(Garbage())

    def run(self) -> None:
        """Serve until the end; raises what cannot be served."""
        self.master.run(self._ready, self._retire)

    def _offer_reloads(
        self,
        again: Again,
        operations: Operations,
        file: DeviceFile,
        device: Device,
        config: ConfigSpace,
        stall: Watchdog,
        may_restart: bool,
    ) -> None:
        master, trial = self.master, None
        reloader = Reloader(
            again.load,
            file,
            device,
            config,
            master,
            stall,
            self._set_file,
            self._begin_anew,
            may_restart=may_restart,
        )
        master.add_chore(reloader)
        if again.check:
            trial = Trial(again.check, master.selector, self._become, self._obstacle)
            master.add_chore(trial)
            master.on_signal(signal.SIGHUP, reloader.signalled)
            master.on_signal(signal.SIGUSR2, trial.start)
            master.on_signal(signal.SIGUSR1, self._make_way)
        operations.offer(reloader, trial)

    def _ready(self) -> None:
        groups = self._file.workers
        event = Ready(
            device=self._file.type_ref,
            queues=sum(map(len, groups)),
            workers=len(groups),
            pid=os.getpid(),
        )
        inquiries.manner.known.clear()
        # A service manager hears of it first: whoever is told by us may end us at once.
        self._fd_store.ready(standby=self._standby)
        self._fd_store.notifier.status(str(event))
        events.publish(event)

    def _retire(self) -> None:
        workers = self._fd_store.take_all(WORKER)
        retire(workers, self._fd_store.take_all(CHANNEL))
        for name, _ in workers:
            self._fd_store.notifier.remove(name)
        self._counters.go_on()

    def _obstacle(self) -> str:
        """Why the workers cannot be replaced now."""
        return IN_POSTCOPY if self.master.pool.history.in_postcopy else ""

    def _become(self) -> None:
        """Have the program as it is installed now take this one's place."""
        assert self._again is not None
        held = {**self._fd_store.held(), **self.master.held()}
        for worker in self._workers():
            held[f"{WORKER}{worker.pid}"] = worker.pidfd
            held[f"{CHANNEL}{channel_name(worker.pid, worker.queues)}"] = worker
        if self._program is not None:
            held |= self._program.held()
        environment = self._fd_store.notifier.environment
        # The new program is to read the file itself.
        self._fd_store.forget_content(DEVICE_FILE)
        # What waits is of the program that we have been.
        self._fd_store.notifier.standby("0")
        become(self._again.run, held, environment, self._signals.hold)
        self._fd_store.notifier.standby("1" if self._standby else "0")
        self._fd_store.keep_content(DEVICE_FILE, self._file.content)

    def _make_way(self) -> None:
        """Have whoever keeps our descriptors start another master, which goes on with them."""
        assert self._again is not None
        if obstacle := self._obstacle():
            log.error("received SIGUSR1, but not making way: %s", obstacle)
            return
        if not self._fd_store.has_successor:
            log.error("received SIGUSR1, but not making way: nobody would come after us")
            return
        try:
            self._again.load()
        except ConfigErrors as error:
            log.error("the next master goes on with the device file of before: %s", error)
        else:
            self._fd_store.forget_content(DEVICE_FILE)
        log.info("received SIGUSR1, making way for another master")
        make_way(self._workers())

    def _begin_anew(self, *, replaced: bool) -> None:
        """The same for what the device file says by now; `replaced`: of the shared files, too."""
        if replaced:
            self._shared.drop()
        self._become()
        self._shared.keep()

    def _set_file(self, file: DeviceFile, device: Device) -> None:
        """New workers are of another kind from now on, and the rest of the file has changed."""
        self._file = file
        self._device = device
        self._prepare = self._prepared(file, device)
        self._host.hook_timeout = self._host.forkserver.import_s = file.keys.hook_timeout
        self._fd_store.keep_content(DEVICE_FILE, file.content)

    # Workers.

    def _prepared(self, file: DeviceFile, device: Device) -> control.Prepare:
        self._forget_pickled()
        self._traces.resize(file.options.trace)
        if file.pickled:
            self._pickled = device_object.sealed(file.pickled, "vuproc-device")
        return control.Prepare(
            type_ref=file.type_ref,
            base_dir=str(file.base_dir),
            options=msgspec.msgpack.encode(file.options),
            chain_limit=device.queue_size(),
            counters=self._counters.name,
            shared=dict(self._shared.fds),
            log_level=getattr(logging, file.keys.log_level.upper()),
            pickled=self._pickled,
            limits=self._limits.of(file.options, device.num_queues()),
            sandbox=policy_of(file, device),
            trace=self._traces.file,
            trace_bytes=self._traces.stride,
        )

    def _forget_pickled(self) -> None:
        pickled, self._pickled = self._pickled, None
        if pickled is not None:
            pickled.close()

    def _start_worker(self, on_report: OnReport) -> WorkerProcess:
        prepare = replace(self._prepare, shared=dict(self._shared.fds))
        worker = WorkerProcess(self._host, prepare, on_report)
        self._fd_store.keep_worker(worker.pid, worker.pidfd)
        worker.on_close(partial(self._fd_store.worker_gone, worker.pid))
        return worker

    def _workers(self) -> list[WorkerProcess]:
        pool = self.master.pool
        posts = [*(slot.worker for slot in pool.slots), pool.slots.standby.worker]
        if pool.slots.helper is not None:
            posts.append(pool.slots.helper.worker)
        return [worker for worker in posts if worker is not None]

    # What a predecessor may have left.

    def _source(self, fd: int | None, stack: ExitStack) -> Source:
        if fd is not None:
            return Inherited(fd)
        path = Path(self._file.socket.path)
        given = self._fd_store.given()
        if given is not None:
            # Passed on to what this process may become; a service manager gives it to every other.
            self._fd_store.give_on("given", given)
            stack.callback(given.close)
            return Inherited(given.dup().take())
        if self._file.socket.mode == "client":
            return Connector(path)
        owner = ids(self._file.socket)
        return self._listener(path, self._file.socket.permissions, (LISTENER, LOCK), owner)

    def _listener(
        self,
        path: Path,
        permissions: int,
        names: tuple[str, str],
        owner: tuple[int, int] = AS_IT_IS,
    ) -> Listener:
        """The socket at `path`, ours or a predecessor's, kept together with its lock."""
        sock, lock = map(self._fd_store.take, names)
        left = None
        if sock is not None and lock is not None:
            left = socket.socket(fileno=sock.take()), lock
        listener = Listener(path, permissions, left, owner)
        kept_socket, kept_lock = listener.left
        self._fd_store.keep(names[0], kept_socket)
        self._fd_store.keep(names[1], kept_lock)
        return listener


def _ring_features(file: DeviceFile) -> int:
    features = RING_FEATURES if file.keys.packed else RING_FEATURES & ~Feature.RING_PACKED
    return int(features | Feature.ACCESS_PLATFORM if file.keys.iommu else features)


def _protocol_features(file: DeviceFile, device: Device, config_size: int) -> int:
    """What a device with so many bytes of configuration space offers."""
    features = PROTOCOL_FEATURES if config_size else PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG
    if file.keys.inband_notifications:
        features |= ProtocolFeature.INBAND_NOTIFICATIONS
    if file.keys.postcopy:
        # Regions that come singly are not mapped in the mode of postcopy.
        features |= ProtocolFeature.PAGEFAULT
        features &= ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    there = file.keys.xen == "auto" and any(map(os.path.exists, XEN_DEVICES))
    if there or file.keys.xen == "on":
        features |= ProtocolFeature.XEN_MMAP
    return int(features | protocol_features_of(device))


def _preloaded(file: DeviceFile) -> list[str]:
    """The device's type, for the forkserver to import, unless a reload would have it again."""
    if file.pickled:
        return []
    installed = imported.is_installed(file.type_ref, file.base_dir)
    known = file.device_type
    return [f"{known.__module__}:{known.__qualname__}"] if installed else []


def _counters(file: DeviceFile, fd: int | None, queues: int, fd_store: FdStore) -> DeviceCounters:
    """The counters, in a segment named after the socket so that two of one socket are noticed.

    The folder's identity stands for the file system: at the same path in another container there is
    another socket.
    """
    sweep()
    if fd is not None:
        key = os.urandom(16).hex()
    else:
        folder = _identity(os.path.dirname(file.socket.path))
        key = f"{file.socket.mode}:{folder}:{file.socket.path}"
    name = f"/vuproc.{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return DeviceCounters(name, queues, fd_store)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # the VMM makes it, perhaps later
    return status.st_dev, status.st_ino
