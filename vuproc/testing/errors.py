"""What the guest's side raises: a back-end that broke a rule, refused, or did not answer."""

from __future__ import annotations

from vuproc.errors import VuprocError


class BackendFault(VuprocError):
    """The device side broke the rules of the ring; `fault` says which, in words."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


class LoadStalled(VuprocError):
    """The device stopped completing: `completed` requests are done, `in_flight` are not."""

    def __init__(self, completed: int, in_flight: int, stall_s: float) -> None:
        super().__init__(completed, in_flight, stall_s)
        self.completed = completed
        self.in_flight = in_flight
        self.stall_s = stall_s

    def __str__(self) -> str:
        return (
            f"no completion for {self.stall_s:g} s: {self.completed} requests done, "
            f"{self.in_flight} in flight"
        )


class NoCompletion(VuprocError):
    """A request on `queue` was not completed within `timeout_s` seconds."""

    def __init__(self, queue: int, timeout_s: float) -> None:
        super().__init__(queue, timeout_s)
        self.queue = queue
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"queue {self.queue}: no completion within {self.timeout_s:g} s"


class NoConfigChange(VuprocError):
    """The back-end announced no change of the configuration space within `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no change of the configuration space was announced within {self.timeout_s:g} s"


class NoReply(VuprocError):
    """The back-end did not answer `message` within `timeout_s` seconds."""

    def __init__(self, message: str, timeout_s: float) -> None:
        super().__init__(message, timeout_s)
        self.message = message
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no answer to {self.message} within {self.timeout_s:g} s"


class NotOffered(VuprocError):
    """The device does not offer the feature with the name `feature`, which was to be used."""

    def __init__(self, feature: str) -> None:
        super().__init__(feature)
        self.feature = feature

    def __str__(self) -> str:
        return f"the device does not offer {self.feature}"


class OutOfMemory(VuprocError):
    """No free range of `size` bytes in the guest's RAM."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def __str__(self) -> str:
        return f"no {self.size} bytes of guest memory are free"


class Refused(VuprocError):
    """The back-end acknowledged `message` with `code`, which is not 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} was refused with code {self.code}"


class RingFull(VuprocError):
    """A chain needs `wanted` descriptors, `free` are there."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(wanted, free)
        self.wanted = wanted
        self.free = free

    def __str__(self) -> str:
        return f"ring full: {self.wanted} descriptors wanted, {self.free} free"


class ServeFailed(VuprocError):
    """The served process did not start, or did not end well: `reason`, and its last log lines."""

    def __init__(self, reason: str, lines: tuple[str, ...]) -> None:
        super().__init__(reason, lines)
        self.reason = reason
        self.lines = lines

    def __str__(self) -> str:
        return "\n".join((self.reason, *self.lines))
