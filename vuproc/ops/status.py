"""What `vuproc status` shows: typed, so that the master, the command line and scripts agree."""

from __future__ import annotations

import msgspec


class QueueStatus(msgspec.Struct, kw_only=True):
    """One virtqueue.

    `state` is stopped, running, disabled, broken, or waiting for a worker that cannot be had at the
    moment (in both cases `cause` says why in one line). `pid` is
    its worker's, None if there is none at the moment; `restarts` counts its replacements since the
    master's start and `causes` are the last of them.
    """

    queue: int
    state: str
    pid: int | None
    restarts: int
    cause: str | None = None
    causes: list[str] = []
    requests: int = 0
    errors: int = 0
    counters: dict[str, int] = {}
    """All that is counted, over deaths of workers and masters (vuproc.shm.counter_table)."""
    in_service: int | None = None
    """The head of the request which the device is serving at this moment."""


class Status(msgspec.Struct, kw_only=True):
    """One device.

    `started` tells one program of the same process from the next: seconds of the monotonic clock.
    `upgrade` is "", "trying", or why the last one was refused.
    """

    device: str
    pid: int
    started: float
    upgrade: str
    connected: bool
    waiting: bool = False
    """Another front-end waits for the connected one to leave."""
    ended: str = ""
    """Why the last connection was ended, if not by its front-end."""
    standby: int | None
    """The worker in waiting."""
    standby_master: int | None = None
    """The keeper's master in waiting, once it is ready."""
    helper: int | None = None
    """The process for what no queue waits for, of a device that has one."""
    details: dict[str, dict[str, str | int]] = {}
    """What the device says of itself, by subject."""
    sandbox: str = ""
    """The mode of the workers' sandbox."""
    sandbox_lacks: list[str] = []
    """Parts of it that could not be had."""
    queues: list[QueueStatus]

    def table(self) -> str:
        """The same for people."""
        state = "connected" if self.connected else "no front-end"
        if self.waiting:
            state += ", another front-end waits"
        lines = [f"{self.device}: master {self.pid}, {state}, standby {self.standby or '-'}"]
        if self.standby_master is not None:
            lines[0] += f", standby master {self.standby_master}"
        if self.helper is not None:
            lines[0] += f", helper {self.helper}"
        for subject, said in self.details.items():
            told = ", ".join(f"{name} {value}" for name, value in said.items() if value != "")
            lines.append(f"{subject}: {told}")
        if self.ended:
            lines.append(f"the last front-end was disconnected: {self.ended}")
        if self.sandbox:
            lines.append("; without ".join([f"sandbox: {self.sandbox}", *self.sandbox_lacks]))
        lines.append(f"queue {'state':9} {'worker':>8} {'restarts':>8} {'requests':>12}  cause")
        for queue in self.queues:
            cause = queue.cause or (queue.causes[-1] if queue.causes else "")
            lines.append(
                f"{queue.queue:>5} {queue.state:9} {queue.pid or '-':>8} {queue.restarts:>8} "
                f"{queue.requests:>12}  {cause}"
            )
        return "\n".join(lines)
