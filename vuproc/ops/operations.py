"""What an operator may ask of a running device: its status, and a broken queue's restart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from vuproc import texts
from vuproc.device import Device
from vuproc.errors import FileRefused
from vuproc.handover.device_counters import DeviceCounters
from vuproc.handover.standby_master import ready_standby
from vuproc.handover.upgrade import Trial
from vuproc.master import Master
from vuproc.ops.admin import AdminError, Later, Request, Verb
from vuproc.ops.reload import Reloader, ReloadRefused
from vuproc.ops.status import QueueStatus, Status

_NOT_HERE = (
    "not for a device that was started with an inherited descriptor, or that a program has made"
)


@runtime_checkable
class WritesBack(Protocol):
    """A device that may have changes to write back."""

    def write_back(self) -> int: ...  # noqa: D102


class Operations:
    """The admin verbs of one master. `keeper` is the process of its keeper, if it has one, and
    `of_device` gives the device.
    """

    def __init__(
        self,
        device: str,
        master: Master,
        counters: DeviceCounters,
        keeper: int | None = None,
        of_device: Callable[[], Device] = Device,
    ) -> None:
        self._of_device = of_device
        self._keeper = keeper
        self._device = device
        self._master = master
        self._counters = counters
        self._started = time.monotonic()
        self._reloader: Reloader | None = None
        self._trial: Trial | None = None
        self.sandbox: Callable[[], str] = lambda: ""
        """The mode of the sandbox that new workers get."""
        self.master_lacks: Sequence[str] = ()
        """What the master could not have of its own."""

    def offer(self, reloader: Reloader, trial: Trial | None) -> None:
        """Reloads are to be had, too, and upgrades with a `trial`."""
        self._reloader, self._trial = reloader, trial

    def verbs(self) -> dict[str, Verb]:
        """Name to function, for the admin server."""
        return {
            "status": self.status,
            "stop": self.stop,
            "queue-restart": self.restart_queue,
            "link": self.link,
            "reload": self.reload,
            "upgrade": self.upgrade,
            "write-back": self.write_back,
        }

    def status(self, _request: Request) -> dict[str, Any]:
        """Everything of `vuproc.ops.status.Status`."""
        pool, session = self._master.pool, self._master.session
        standby = pool.slots.standby.worker
        queues = []
        for slot in pool.slots:
            for index in slot.queues:
                counters = self._counters.snapshot(index)
                queues.append(
                    QueueStatus(
                        queue=index,
                        state=self.state_of(index),
                        pid=None if slot.worker is None else slot.worker.pid,
                        restarts=slot.restarts,
                        cause=pool.history.broken.get(index) or slot.lack or None,
                        causes=list(slot.causes),
                        requests=counters.requests,
                        errors=counters.errors,
                        counters=counters.counters(),
                        in_service=counters.busy - 1 if counters.busy else None,
                    )
                )
        status = Status(
            device=self._device,
            pid=os.getpid(),
            started=self._started,
            upgrade="" if self._trial is None else self._trial.state,
            connected=session is not None,
            waiting=self._master.other_waits,
            ended=self._master.ended,
            standby=None if standby is None else standby.pid,
            standby_master=None if self._keeper is None else ready_standby(self._keeper),
            helper=self._helper(),
            details=self._details(),
            sandbox=self.sandbox(),
            sandbox_lacks=[*self.master_lacks, *pool.slots.lacks],
            queues=sorted(queues, key=lambda queue: queue.queue),
        )
        return msgspec.to_builtins(status)  # type: ignore[no-any-return]

    def _helper(self) -> int | None:
        helper = self._master.pool.slots.helper
        return None if helper is None or helper.worker is None else helper.worker.pid

    def _details(self) -> dict[str, dict[str, str | int]]:
        """What the device says of itself; its mistakes are its own."""
        try:
            return {name: dict(said) for name, said in self._of_device().details().items()}
        except Exception as error:
            return {"details": {"error": texts.described(error)}}

    def write_back(self, _request: Request) -> dict[str, Any]:
        """Have the device's helper write back now. The status says what has become of it: the run
        is in the store once `answered` is as high as the number that this gives.
        """
        device = self._of_device()
        if not isinstance(device, WritesBack):
            raise AdminError("only a disk whose changes are written back (write_back) has this")
        try:
            return {"number": device.write_back()}
        except FileRefused as refused:
            raise AdminError(str(refused)) from refused

    def stop(self, _request: Request) -> dict[str, Any]:
        """Have the device end in order, as SIGTERM does: once the answer is on its way."""
        os.kill(os.getpid(), signal.SIGTERM)
        return {"pid": os.getpid()}

    def restart_queue(self, request: Request) -> dict[str, Any]:
        """Serve a broken queue again, from its record."""
        index = request.queue
        if index is None or not 0 <= index < len(self._counters.of_workers):
            raise AdminError(f"no queue {index}: there are {len(self._counters.of_workers)}")
        self._not_while_waiting()
        refusal = self._master.revive(index)
        if refusal is not None:
            raise AdminError(refusal)
        return {"queue": index}

    def link(self, request: Request) -> dict[str, Any]:
        """Have the link of a network device up or down, and tell its driver."""
        if self._reloader is None:
            raise AdminError(_NOT_HERE)
        if request.up is None:
            raise AdminError("up or down?")
        self._not_while_waiting()
        if not self._reloader.set_link(request.up):
            raise AdminError("only a network device has a link")
        return {"up": request.up}

    def reload(self, _request: Request) -> Later:
        """Read the device file anew; a line for each change."""
        if self._reloader is None:
            raise AdminError(_NOT_HERE)
        self._not_while_waiting()
        answer = Later()

        def told(result: list[str] | ReloadRefused) -> None:
            refused = isinstance(result, ReloadRefused)
            answer.tell(AdminError(str(result)) if refused else {"lines": result})

        self._reloader.reload(told)
        return answer

    def upgrade(self, _request: Request) -> dict[str, Any]:
        """Try the installed program, and become it. The status says what has become of it."""
        if self._trial is None:
            raise AdminError(_NOT_HERE)
        self._trial.start()
        return {"started": self._started}

    def _not_while_waiting(self) -> None:
        if self._master.waiting:
            raise AdminError("a message of the front-end waits for a worker; try again")

    def state_of(self, index: int) -> str:
        """The state of a queue, as the status has it."""
        pool = self._master.pool
        if index in pool.history.broken:
            return "broken"
        if any(slot.lack for slot in pool.slots if index in slot.queues):
            return "waiting"
        session = self._master.session
        if session is None or not session.state.rings[index].started:
            return "stopped"
        return "running" if session.state.rings[index].enabled else "disabled"
