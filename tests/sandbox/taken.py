"""A device whose workers do whatever a request says: what somebody does who has taken one over."""

from __future__ import annotations

import threading
import traceback

from vuproc import Device, Needs, Request


class Taken(Device):
    """A request is Python, run with `device` and `request`; the answer is what it leaves in
    `answer`, or the last line of what it raised.
    """

    device_id = 42

    def setup(self, queue: int) -> None:
        self.kept: dict[str, object] = {}

    def handle(self, request: Request) -> None:
        names: dict[str, object] = {"device": self, "request": request, "answer": None}
        try:
            exec(request.read().decode(), names)
            answer = repr(names["answer"])
        except Exception as error:
            answer = traceback.format_exception_only(error)[-1].strip()
        request.write(answer.encode()[: request.writable])


class Connected(Taken):
    needs = Needs(network=True)


class OnThisMachine(Taken):
    needs = Needs(network="unix")


class Ringed(Taken):
    """It says that it uses io_uring."""

    needs = Needs(io_uring=True)


class Opening(Taken):
    """It opens what it wants before it serves: twenty lines of an author, with no word of needs."""

    def setup(self, queue: int) -> None:
        super().setup(queue)
        self.kept["file"] = open("/etc/hostname", "rb")  # noqa: SIM115


class Threaded(Taken):
    """It has a thread before it is locked in."""

    def setup(self, queue: int) -> None:
        super().setup(queue)
        threading.Thread(target=threading.Event().wait, daemon=True).start()
